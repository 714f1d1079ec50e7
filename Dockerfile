# syntax=docker/dockerfile:1
# One image for every role: `server`, `workers event`. See docker-compose.yml.

FROM rust:1.95.0-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1 AS chef
RUN cargo install cargo-chef --version 0.1.78 --locked
WORKDIR /build

# What the dependencies are, and nothing of our own code: the layer after next changes only when they do.
FROM chef AS plan
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS build
COPY --from=plan /build/recipe.json recipe.json
RUN cargo chef cook --release --locked --package server --package workers --recipe-path recipe.json
COPY . .
RUN cargo build --release --locked --package server --package workers

FROM debian:12.11-slim@sha256:b1a741487078b369e78119849663d7f1a5341ef2768798f7b7406c4240f86aef AS runtime
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --home-dir /data --create-home tributary
COPY --from=build /build/target/release/server /build/target/release/workers /usr/local/bin/
USER tributary
WORKDIR /data
# For `server --embedded`: docker run -v tributary:/data ... server --embedded. The services profile keeps nothing here.
ENV TRIBUTARY_BIND=0.0.0.0:3000 \
    TRIBUTARY_DATA=/data \
    TRIBUTARY_MONITOR_BIND=0.0.0.0:3001 \
    TRIBUTARY_LOG=json
EXPOSE 3000 3001
STOPSIGNAL SIGTERM
CMD ["server"]
