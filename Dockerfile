# For people who have a container engine: docker build --target operator|agent|rooms -t durable-server/<target>:<version> .
FROM rust:1.95.0-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends musl-tools && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ENV CC_x86_64_unknown_linux_musl=musl-gcc
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --target x86_64-unknown-linux-musl -p operator -p agent -p rooms && \
    cp target/x86_64-unknown-linux-musl/release/durable-operator target/x86_64-unknown-linux-musl/release/durable-agent \
       target/x86_64-unknown-linux-musl/release/rooms /

FROM scratch AS operator
COPY --from=build /durable-operator /durable-operator
USER 65532:65532
ENTRYPOINT ["/durable-operator"]

FROM scratch AS agent
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /durable-agent /durable-agent
USER 65532:65532
ENTRYPOINT ["/durable-agent"]

FROM scratch AS rooms
COPY --from=build /rooms /rooms
USER 65532:65532
ENTRYPOINT ["/rooms"]
