# The page (`heretic ui`) and every other command of Heretic in a container.
#
#   docker build -t heretic .                            for NVIDIA GPUs: PyTorch's stock build
#   docker build -t heretic --build-arg DEVICE=cpu .     2.5 GB less
#   docker run --rm -it --gpus all -p 127.0.0.1:7860:7860 -v heretic:/data heretic
#
# See docs/container.md for what was tried.
FROM python:3.11-slim

ARG DEVICE=cuda
ARG EXTRAS=ui,report,judge,gguf,quantization

RUN useradd --create-home --uid 1000 heretic && mkdir /data && chown heretic /data

# PyTorch first: it changes least, and is most of the image.
WORKDIR /source
COPY constraints.txt constraints-torch.txt ./
RUN case "$DEVICE" in \
      cpu) pip install --no-cache-dir "$(grep '^torch==' constraints-torch.txt)" \
             --index-url https://download.pytorch.org/whl/cpu ;; \
      cuda) pip install --no-cache-dir torch -c constraints-torch.txt ;; \
      *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 2 ;; \
    esac
COPY pyproject.toml README.md LICENSE MANIFEST.in ./
COPY src src
RUN pip install --no-cache-dir ".[$EXTRAS]" -c constraints.txt

# Models, runs and what is saved outlive the container.
ENV HF_HOME=/data/huggingface XDG_CACHE_HOME=/data/cache PYTHONUNBUFFERED=1
VOLUME /data
WORKDIR /data
USER heretic
EXPOSE 7860

# Without the token a page that lives asks for it: status 401.
HEALTHCHECK --start-period=30s --interval=30s --timeout=10s CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 7860, timeout=5); c.request('GET', '/'); raise SystemExit(c.getresponse().status != 401)"]

# As Ctrl+C does: a search ends after its batch, and can go on.
STOPSIGNAL SIGINT
ENTRYPOINT ["heretic"]
CMD ["ui", "--host", "0.0.0.0", "--no-open"]
