// Renders a template as Ollama does: `.System` and `.Messages` with Role and Content.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	var cases []struct {
		Template string
		Messages []message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	texts := []string{}
	for _, one := range cases {
		var system []string
		for _, m := range one.Messages {
			if m.Role == "system" {
				system = append(system, m.Content)
			}
		}
		var text strings.Builder
		data := map[string]any{"System": strings.Join(system, "\n\n"), "Messages": one.Messages}
		if err := template.Must(template.New("").Parse(one.Template)).Execute(&text, data); err != nil {
			panic(err)
		}
		texts = append(texts, text.String())
	}
	if err := json.NewEncoder(os.Stdout).Encode(texts); err != nil {
		panic(err)
	}
}
