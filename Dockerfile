# syntax=docker/dockerfile:1
# The program and what it cannot do without: libc, certificate authorities, and no shell.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
# Root certificates for Google's servers; the C compiler for SQLite is there already.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin meet-projector \
    && install -D target/release/meet-projector /image/usr/bin/meet-projector
# Libraries by what the program says that it needs, so that this does not depend on the machine's architecture.
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN ldd /image/usr/bin/meet-projector | grep -o '/[^ ]*' | while read -r library; do install -D "$library" "/image$library"; done \
    && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && printf 'meet-projector:x:65532:65532::/:/sbin/nologin\n' > /image/etc/passwd \
    && printf 'meet-projector:x:65532:\n' > /image/etc/group \
    && install -d -o 65532 -g 65532 -m 700 /image/var/lib/meet-projector

FROM scratch
COPY --from=build /image /
USER 65532:65532
ENV HTTP_ADDR=0.0.0.0:8080 \
    ADMIN_ADDR=0.0.0.0:9090 \
    DATABASE_URL=sqlite:///var/lib/meet-projector/meet-projector.db \
    LOG_FORMAT=json \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
VOLUME ["/var/lib/meet-projector"]
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s CMD ["/usr/bin/meet-projector", "healthcheck"]
ENTRYPOINT ["/usr/bin/meet-projector"]
CMD ["serve"]
