# Any image with Python 3.11 or later and its venv module will do as the base: python:*-slim, or a Debian with python3-venv.
# A tag moves. For a build that can be repeated give the digest that it has today, too, and note it:
#   docker buildx imagetools inspect python:3.13-slim-bookworm --format '{{.Manifest.Digest}}'
#   docker build --build-arg BASE=python:3.13-slim-bookworm@sha256:… -t lava-proxy .
ARG BASE=python:3.13-slim-bookworm

# --- build: has pip, the build backend and the sources; nothing of it but /opt/lava-proxy goes on ---
FROM ${BASE} AS build
ARG PYTHON=python3
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
# Two environments: the one that is shipped has no pip. Wheels only, each one checked against its hash in the lock.
# A pip.conf for a package index of your own can be given as the build secret "pip_conf"; it leaves no trace in a layer.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    ${PYTHON} -m venv /opt/build \
    && ${PYTHON} -m venv --without-pip /opt/lava-proxy \
    && /opt/build/bin/pip install --require-hashes --only-binary=:all: -r requirements-build.lock \
    && /opt/build/bin/pip --python /opt/lava-proxy/bin/python install \
        --require-hashes --only-binary=:all: -r requirements.lock
COPY pyproject.toml README.md LICENSE config.example.toml ./
COPY proxy ./proxy
RUN /opt/build/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /wheels . \
    && /opt/build/bin/pip --python /opt/lava-proxy/bin/python install --no-deps --no-index /wheels/*.whl

# --- the image itself ---
FROM ${BASE}
ARG PYTHON=python3
LABEL org.opencontainers.image.title="lava-proxy" \
      org.opencontainers.image.description="A local forwarding proxy for the Lava AI gateway" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/lava-proxy /opt/lava-proxy
# Some bases ship the standard library without its bytecode. It cannot be written later (read-only root, other user), and
# the health check would compile it anew every few seconds. Files that are no Python of this version are no reason to fail.
RUN ${PYTHON} -m compileall -q "$(${PYTHON} -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" >/dev/null || true; \
    install -d -o 10001 -g 10001 -m 0700 /var/lib/lava-proxy
ENV PATH=/opt/lava-proxy/bin:$PATH \
    HOME=/var/lib/lava-proxy \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Numeric, so that Kubernetes' runAsNonRoot can see it. The only place the program writes to is the volume.
USER 10001:10001
WORKDIR /var/lib/lava-proxy
VOLUME ["/var/lib/lava-proxy"]
EXPOSE 5282
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s --retries=3 CMD ["lava-proxy", "health"]
ENTRYPOINT ["lava-proxy"]
# All addresses of the container: its loopback cannot be reached from outside. This needs at least one local key
# ([server] keys or a project's keys), else the program says so and exits 78. The configuration is looked for at
# /etc/lava-proxy/config.toml; give Docker more than its 10 seconds to stop (drain_seconds is 60).
CMD ["serve", "--host", "0.0.0.0"]
