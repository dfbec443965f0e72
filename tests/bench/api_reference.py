"""Bare Flask, as the reference of a trivial route: run under the same gunicorn, by the same command."""

from flask import Flask

app = Flask(__name__)


@app.get("/api/version")
def trivial():
    return {"service": "helios-backend", "version": "0"}
