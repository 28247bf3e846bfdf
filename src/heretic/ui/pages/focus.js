// A part of a page that is drawn anew takes away the element that has the focus: who works with the
// keyboard would begin at the top again. The focus goes to what has the same name in the new part.
(() => {
  const FOCUSABLE = "a[href], button, input, textarea, [tabindex='0']"
  const nameOf = node => `${node.tagName} ${node.getAttribute("aria-label") || node.innerText}`
  let held = null // what had the focus last, if it stood in a part
  document.addEventListener("focusin", event => {
    const part = event.target.closest(".part")
    held = part && { node: event.target, name: nameOf(event.target), part }
  })
  document.addEventListener("pointerdown", () => { held = null })
  new MutationObserver(() => {
    if (!held || held.node.isConnected || document.activeElement !== document.body) return
    const found = [...held.part.querySelectorAll(FOCUSABLE)].find(one => nameOf(one) === held.name)
    if (found) found.focus({ preventScroll: true })
  }).observe(document, { childList: true, subtree: true })
})()
