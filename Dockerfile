# moeits on a CPU, with every extra. Built and run by buildah 1.28 on a stand-in of the first line's image, made of Debian 12
# with its Python 3.11.2; not yet on that image itself, and not by Docker.
#
#     docker build --tag moeits .
#     docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/data" moeits simplify MODEL --reduction 0.5 --output SMALLER
#
# MODEL and SMALLER are folders in the one that is mounted; --user makes you their owner.
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
# Compiled kernels and downloads go to a home where whoever --user names may write.
RUN useradd --create-home --uid 1000 moeits && chmod 1777 /home/moeits && mkdir /data && chown moeits /data
COPY --from=build /opt/moeits /opt/moeits
ENV PATH=/opt/moeits/bin:$PATH HOME=/home/moeits NUMBA_CACHE_DIR=/home/moeits/.cache/numba PYTHONUNBUFFERED=1
USER moeits
WORKDIR /data
ENTRYPOINT ["moeits"]
CMD ["--help"]
