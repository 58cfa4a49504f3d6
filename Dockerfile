# One image for everything in a cluster: proxy, control plane and command, static, and nothing else.
#   version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
#   docker build -t "REGISTRY/tulle:$version" --build-arg VERSION="$version" --build-arg REVISION="$(git rev-parse HEAD)" .
# Or without Docker, from binaries that are built already: .ci/image, which reads here what is in the image and what it says of itself.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# Naming the target keeps the flags away from build scripts and macros, which must be dynamic.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    target=$(rustc -vV | sed -n 's/^host: //p') \
    && RUSTFLAGS='-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs' cargo build --locked --profile dist --target "$target" \
        --bin tulle --bin tulle-proxy --bin tulle-control-plane \
    && install -D -m 755 -t /out/bin "target/$target/dist/tulle" "target/$target/dist/tulle-proxy" "target/$target/dist/tulle-control-plane" \
    && install -d -m 755 /out/etc && install -d -m 1777 /out/tmp \
    && printf 'root:x:0:0:root:/:\ntulle:x:1337:1337:tulle:/:\n' >/out/etc/passwd \
    && printf 'root:x:0:\ntulle:x:1337:\n' >/out/etc/group

FROM scratch
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tulle" \
      org.opencontainers.image.description="A service mesh at the weight of a library" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.url="https://tulle.dev"
COPY --from=build /out/ /
ENV PATH=/bin
USER 1337:1337
