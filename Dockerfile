# The images of tidal-server, one per kind of device:
#
#   docker build --target=cpu -t tidal:cpu .
#   docker build --target=cuda -t tidal:cuda .
#
# Both run as user 65532, write nothing (a read-only root filesystem will do), and without arguments
# serve the embedded model. docs/deploy.md says how to run them.

# A final image has the release of its build's base: the programs use its shared libraries.
ARG CPU_BASE=docker.io/library/debian:bookworm-slim
ARG CUDA_BUILD_BASE=docker.io/nvidia/cuda:12.8.1-devel-ubuntu24.04
ARG CUDA_BASE=docker.io/nvidia/cuda:12.8.1-base-ubuntu24.04

# --- builds, which also run the tests -----------------------------------------------------------
# Packages come first and change seldom; ccache outlives the layers. TESTS=off neither builds nor
# runs tests; JOBS=0 uses every core.

FROM ${CPU_BASE} AS cpu-build
WORKDIR /src
COPY scripts/install_packages.sh scripts/make_venv.sh scripts/
COPY tests/requirements.txt tests/
RUN scripts/install_packages.sh build test && scripts/make_venv.sh
COPY . .
ARG TESTS=on
ARG JOBS=0
RUN --mount=type=cache,target=/root/.cache/ccache \
    scripts/build_for_image.sh --output=/out --tests="${TESTS}" --jobs="${JOBS}"

FROM ${CUDA_BUILD_BASE} AS cuda-build
WORKDIR /src
COPY scripts/install_packages.sh scripts/make_venv.sh scripts/
COPY tests/requirements.txt tests/
RUN scripts/install_packages.sh build test && scripts/make_venv.sh
COPY . .
ARG TESTS=on
ARG JOBS=0
RUN --mount=type=cache,target=/root/.cache/ccache \
    scripts/build_for_image.sh --output=/out --cuda --tests="${TESTS}" --jobs="${JOBS}"

# --- what is shipped ----------------------------------------------------------------------------
# Shared libraries are the distribution's packages, so that scanners see them; their list changes
# less often than the programs, and its layer is kept.

FROM ${CPU_BASE} AS cpu
COPY --from=cpu-build /out/packages.txt /usr/share/tidal/packages.txt
RUN apt-get update -q \
    && xargs -a /usr/share/tidal/packages.txt apt-get install -q -y --no-install-recommends \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/log/*
COPY --from=cpu-build /out/tidal /opt/tidal
ENV PATH=/opt/tidal/bin:/usr/local/bin:/usr/bin:/bin
USER 65532:65532
EXPOSE 50051 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=10m --retries=3 \
    CMD ["/opt/tidal/bin/tidal-client", "health"]
ENV TIDAL_DEVICE=cpu
ENTRYPOINT ["/opt/tidal/bin/tidal-server"]
CMD ["--model_path=/opt/tidal/share/tidal/models/needle", "--selection_layers=2,5"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tidal-server" \
      org.opencontainers.image.description="gRPC inference server with sparse attention, CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM ${CUDA_BASE} AS cuda
COPY --from=cuda-build /out/packages.txt /usr/share/tidal/packages.txt
RUN apt-get update -q \
    && xargs -a /usr/share/tidal/packages.txt apt-get install -q -y --no-install-recommends \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/log/*
# The toolkit's libraries that the plugin needs: larger than the programs, and they change less.
COPY --from=cuda-build /out/cuda /opt/tidal/lib
COPY --from=cuda-build /out/tidal /opt/tidal
ENV PATH=/opt/tidal/bin:/usr/local/bin:/usr/bin:/bin
USER 65532:65532
EXPOSE 50051 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=10m --retries=3 \
    CMD ["/opt/tidal/bin/tidal-client", "health"]
# No falling back to the CPU where the GPU is missing: --device=auto would.
ENV TIDAL_DEVICE=cuda
ENTRYPOINT ["/opt/tidal/bin/tidal-server"]
CMD ["--model_path=/opt/tidal/share/tidal/models/needle", "--selection_layers=2,5"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tidal-server" \
      org.opencontainers.image.description="gRPC inference server with sparse attention, CUDA" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
