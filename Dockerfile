# docker build -t paramdelta .
# docker run --rm --read-only --tmpfs /tmp -v "$PWD:/work" -u "$(id -u):$(id -g)" paramdelta plan recipe.yaml
FROM python:3.12-slim AS build
COPY . /source
RUN python -m venv /opt/paramdelta \
 && /opt/paramdelta/bin/pip install --no-cache-dir --disable-pip-version-check /source

FROM python:3.12-slim
COPY --from=build /opt/paramdelta /opt/paramdelta
RUN useradd --create-home --uid 1000 paramdelta && mkdir /work && chown paramdelta /work
# The root file system may be read-only: compiled kernels and downloads go to /tmp or to a volume.
ENV PATH=/opt/paramdelta/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/tmp/numba \
    HF_HOME=/tmp/huggingface
USER paramdelta
WORKDIR /work
ENTRYPOINT ["paramdelta"]
CMD ["--help"]
