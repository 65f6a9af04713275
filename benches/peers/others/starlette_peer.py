"""Starlette on uvicorn (uvloop, httptools): a response with a BackgroundTask."""

import asyncio
import socket

import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

PAGE = b"x" * (1024 * 1024)


async def respond(request):
    return PlainTextResponse("hello", background=BackgroundTask(asyncio.sleep, 0.1))


async def park(request):
    return PlainTextResponse("hello", background=BackgroundTask(asyncio.sleep, 3600))


async def upload(request):
    return Response(PAGE, headers={"connection": "close"})


app = Starlette(
    routes=[
        Route("/respond", respond),
        Route("/park", park),
        Route("/upload", upload, methods=["POST"]),
    ]
)

listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", 0))
listener.listen(2048)
print("127.0.0.1:%d" % listener.getsockname()[1], flush=True)
config = uvicorn.Config(app, loop="uvloop", http="httptools", lifespan="off", access_log=False, log_level="error")
uvicorn.Server(config).run(sockets=[listener])
