# One image for each service: `docker build --build-arg SERVICE=gateway -t gyre/gateway .`
# `--build-arg EXTRAS="--extra presidio"` adds Presidio to gateway or features, for loops that redact what it alone knows.
# Each holds what its own package depends on, at the versions of uv.lock, so only the trainer's image holds torch.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# What is installed depends on these files alone, so a change of the code leaves the layers of dependencies as they are.
FROM ${PYTHON_IMAGE} AS manifests
WORKDIR /src
COPY . .
RUN find . -type f ! -name pyproject.toml ! -name uv.lock ! -name .python-version -delete && find . -type d -empty -delete

FROM ${PYTHON_IMAGE} AS dependencies
RUN pip install --quiet --no-cache-dir "uv>=0.8,<1"
ARG SERVICE
ARG EXTRAS=""
RUN case "$SERVICE" in gateway|features|inference|trainer|deployer|monitor) ;; \
    *) echo "build with --build-arg SERVICE=gateway|features|inference|trainer|deployer|monitor, not '$SERVICE'" >&2; exit 1 ;; esac
ENV UV_PROJECT_ENVIRONMENT=/opt/gyre UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
WORKDIR /src
COPY --from=manifests /src ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv sync --quiet --frozen --no-dev --no-install-workspace --package "gyre-$SERVICE" $EXTRAS

FROM dependencies AS build
ARG SERVICE
ARG EXTRAS=""
COPY . .
RUN --mount=type=cache,target=/root/.cache/uv \
    uv sync --quiet --frozen --no-dev --no-editable --package "gyre-$SERVICE" $EXTRAS \
    && mkdir /own && cp -r --parents /opt/gyre/lib/python3*/site-packages/gyre* /opt/gyre/lib/python3*/site-packages/externalscaler* /own

FROM ${PYTHON_IMAGE}
ARG SERVICE
LABEL org.opencontainers.image.title="gyre-${SERVICE}" org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/gyre/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SERVICE=${SERVICE} \
    GYRE_LISTEN=0.0.0.0:7000 \
    GYRE_METRICS_LISTEN=0.0.0.0:7001 \
    GYRE_LOOPS=/etc/gyre/loops/movies/gyre.yaml
RUN groupadd --system --gid 10001 gyre \
    && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/gyre --create-home gyre \
    && mkdir -p /var/lib/gyre/state /var/lib/gyre/warehouse /var/lib/gyre/artifacts /var/lib/gyre/models \
    && chown -R gyre:gyre /var/lib/gyre
COPY --from=dependencies /opt/gyre /opt/gyre
COPY --from=build /own /
COPY --chmod=755 infra/container/service /usr/local/bin/gyre-service
COPY --chmod=755 infra/container/probe /usr/local/bin/gyre-probe
USER 10001
WORKDIR /var/lib/gyre
EXPOSE 7000 7001
ENTRYPOINT ["gyre-service"]
