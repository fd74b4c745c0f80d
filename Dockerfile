# The runtime and its server: no torch, no compiler, not root.
#
#     docker build -t galip-edge .
#     docker run -p 8000:8000 -e GALIP_EDGE_API_KEY=... galip-edge
#     docker run -p 8000:8000 -e GALIP_EDGE_API_KEY=... -v ./galip-coco:/model:ro galip-edge \
#         serve --host 0.0.0.0 --model /model
#     docker run -v ./images:/images galip-edge generate "a bird on a branch" --out /images

ARG BASE=python:3.12-slim

FROM ${BASE} AS wheel
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel /source

FROM ${BASE}
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir "$(echo /wheel/*.whl)[serve]"
RUN useradd --uid 10001 --create-home galip
USER 10001
WORKDIR /home/galip
# Compiled models; mount a volume here for a faster start.
ENV GALIP_EDGE_CACHE=/home/galip/cache
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD \
    ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz')"]
ENTRYPOINT ["galip-edge"]
CMD ["serve", "--host", "0.0.0.0"]
