# The app in a container, on a CPU: docker build -t cest . && docker run -p 7860:7860 cest
FROM python:3.11-slim
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
    -r requirements.txt
COPY app.py LICENSE NOTICE README.md ./
COPY cest cest
COPY model_card model_card
RUN useradd --create-home visitor
USER visitor
ENV GRADIO_SERVER_NAME=0.0.0.0 OMP_NUM_THREADS=2 CEST_DETECTOR=embedded
EXPOSE 7860
CMD ["python", "app.py"]
