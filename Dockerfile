# docker build -t kegnet_pl .
# docker run --rm -v "$PWD:/kegnet" --user "$(id -u):$(id -g)" kegnet_pl experiment=mnist_lenet
FROM python:3.11-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY src src
RUN pip install --no-cache-dir "build>=1.2" && python -m build --wheel --outdir /dist

FROM python:3.11-slim
COPY --from=wheel /dist /dist
RUN pip install --no-cache-dir /dist/*.whl && rm -r /dist
# nobody, as a number: Kubernetes can check that it is not root
USER 65534
WORKDIR /kegnet
# A folder that any user of the container may write
ENV HOME=/tmp
ENTRYPOINT ["python", "-m", "kegnet_pl"]
