# Builds an image that serves Helios on port 8080 as a user without rights. How: deploy/README.md

# The page, where its source is in the package; else there is nothing to build, and the server shows its own.
FROM node:20-bookworm-slim AS page
WORKDIR /src/helios
COPY helios ./
RUN if [ -f web/package.json ]; then npm --prefix web ci && npm --prefix web run build; else mkdir -p web/dist; fi

# The package and what it needs, in an environment of its own that is copied whole.
FROM python:3.12-slim-bookworm AS build
# TORCH_INDEX: where pip finds builds of torch for the processor only; without it, those of the usual index, which
# for x86 bring the libraries of a graphics card along, some gigabytes. deploy/README.md says what to give.
ARG TORCH="torch>=2.10,<2.14"
ARG TORCH_INDEX=""
ARG EXTRAS="postgres,redis,gemini,sweeps"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/helios/bin:$PATH
RUN python -m venv /opt/helios
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
WORKDIR /src
COPY setup.py settings.ini README.md LICENSE ./
COPY data data
COPY nbs nbs
COPY helios helios
COPY --from=page /src/helios/web/dist helios/web/dist
RUN pip install ".[$EXTRAS]"

FROM python:3.12-slim-bookworm AS run
RUN apt-get update \
    && apt-get install -y --no-install-recommends dumb-init=1.2.* \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 1001 helios \
    && useradd --uid 1001 --gid helios --no-create-home --home-dir /data --shell /usr/sbin/nologin helios \
    && install -d -o helios -g helios -m 0750 /data
COPY --from=build /opt/helios /opt/helios
ENV PATH=/opt/helios/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp/matplotlib \
    HELIOS_HOME=/data HELIOS_HOST=0.0.0.0 PORT=8080 FLASK_ENV=production
USER 1001:1001
WORKDIR /data
VOLUME ["/data"]
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as web; web.urlopen('http://127.0.0.1:' + os.environ.get('PORT', '8080') + '/api/health', timeout=8)"]
ENTRYPOINT ["dumb-init", "--"]
CMD ["helios", "serve"]
