# syntax=docker/dockerfile:1
#
#   docker build -t filepool:cpu .                              any machine
#   docker build -t filepool:cuda --build-arg DEVICE=cuda .     NVIDIA; run with --gpus all
#
# One image, three programs: the pool (default), python -m pool.gateways.http, python -m pool.gateways.redis.
# docs/DEPLOY.md tells how they belong together.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ARG DEVICE=cpu
# The package index has PyTorch for CUDA; the one without CUDA, 200 MB instead of 3 GB, comes from PyTorch's own.
ARG CPU_TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/filepool/venv
ENV PATH=/opt/filepool/venv/bin:$PATH
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE worker_main.py ./
RUN case "${DEVICE}" in \
      cpu) pip install -c constraints.txt torch --index-url "${CPU_TORCH_INDEX}" ;; \
      cuda) pip install -c constraints.txt torch ;; \
      *) echo "DEVICE is cpu or cuda, not ${DEVICE}" >&2; exit 1 ;; \
    esac
COPY pool pool
COPY inference inference
RUN pip install -c constraints.txt ".[all]"
ENV FILEPOOL_WEIGHTS=/opt/filepool/weights
WORKDIR /
RUN python -m inference.weights install

FROM ${PYTHON_IMAGE}
# OpenCV is linked against the first two; tini reaps what a killed worker leaves behind.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 tini \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 filepool \
 && useradd --uid 10001 --gid filepool --home-dir /var/lib/filepool --no-create-home --shell /usr/sbin/nologin filepool \
 && install -d -o filepool -g filepool -m 0700 /var/lib/filepool /var/lib/filepool/media
COPY --from=build /opt/filepool /opt/filepool
COPY deploy/config.json /etc/filepool/config.json
ENV PATH=/opt/filepool/venv/bin:$PATH \
    FILEPOOL_WEIGHTS=/opt/filepool/weights \
    HOME=/var/lib/filepool \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /etc/filepool
VOLUME /var/lib/filepool
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=10s --start-period=180s --retries=4 CMD ["python", "-m", "pool", "status", "--check"]
ENTRYPOINT ["tini", "-s", "--"]
CMD ["python", "-m", "pool", "serve"]
