# moeits on a CPU, with every extra. Not built yet: no machine that worked on it had a Docker daemon.
#
#     docker build --tag moeits .
#     docker run --rm --volume "$PWD:/data" moeits simplify MODEL --reduction 0.5 --output SMALLER
#
# Versions are those of CI (constraints.txt), torch's too. Where pip's usual build of that brings gigabytes for GPUs, give the
# index of those for CPUs, which torch's own page names: docker build --build-arg TORCH_INDEX=URL --tag moeits .

FROM python:3.11.13-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/moeits
COPY constraints.txt ./
ARG TORCH_INDEX
RUN /opt/moeits/bin/pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN /opt/moeits/bin/pip install --constraint constraints.txt '.[all]'

FROM python:3.11.13-slim-bookworm
RUN useradd --create-home --uid 1000 moeits && mkdir /data && chown moeits /data
COPY --from=build /opt/moeits /opt/moeits
# Compiled kernels and downloads go where this user may write.
ENV PATH=/opt/moeits/bin:$PATH NUMBA_CACHE_DIR=/home/moeits/.cache/numba PYTHONUNBUFFERED=1
USER moeits
WORKDIR /data
ENTRYPOINT ["moeits"]
CMD ["--help"]
