# syntax=docker/dockerfile:1
# The image of deploy/kubernetes:   docker build --tag REGISTRY/kdns:0.1.0 .
# Both stages have Python 3.13 (the compiled wheels are made for one minor version) on Debian 13.

FROM python:3.13-slim-trixie AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py README.md ./
COPY kdns kdns
# The byte code is made here, and never checked against the sources: the root file system is read-only later.
RUN KDNS_COMPILED=must pip install --no-cache-dir --no-compile --target /app . \
 && python -m compileall -q --invalidation-mode unchecked-hash /app

# Python, its libraries and CA certificates: no shell, no package manager, no compiler.
FROM gcr.io/distroless/python3-debian13
COPY --from=build /app /app
ENV PYTHONPATH=/app PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 KDNS_COMPILED=must
USER 65532:65532
WORKDIR /
# Port 53 needs no privilege where net.ipv4.ip_unprivileged_port_start is 0: Docker and containerd 2 set it so in every
# container's own network, the Deployment asks for it.
EXPOSE 53/udp 53/tcp 9153/tcp 8080/tcp 8181/tcp
ENTRYPOINT ["/usr/bin/python3.13", "-m", "kdns"]
