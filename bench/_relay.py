"""A relay on 127.0.0.1 that lets a server seem so many milliseconds away: each answer begins that much later.

    python -m bench._relay --to 127.0.0.1:9000 --delay 0.02

Bytes pass as they are, so that signatures hold. Prints ``{"url"}``.
"""

from __future__ import annotations

import argparse
import asyncio
import json


async def _relay(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int, delay: float
) -> None:
    from_server, to_server = await asyncio.open_connection(host, port, limit=1 << 20)
    asked = True

    async def questions() -> None:
        nonlocal asked
        while data := await reader.read(1 << 16):
            asked = True
            to_server.write(data)
            await to_server.drain()
        to_server.close()

    async def answers() -> None:
        nonlocal asked
        while data := await from_server.read(1 << 20):
            if asked:
                asked = False
                await asyncio.sleep(delay)
            writer.write(data)
            await writer.drain()
        writer.close()

    await asyncio.gather(questions(), answers(), return_exceptions=True)


async def _serve(host: str, port: int, delay: float) -> None:
    server = await asyncio.start_server(lambda r, w: _relay(r, w, host, port, delay), "127.0.0.1", 0, limit=1 << 20)
    print(json.dumps({"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"}), flush=True)
    await server.serve_forever()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", required=True)
    parser.add_argument("--delay", type=float, required=True)
    options = parser.parse_args()
    host, _, port = options.to.partition(":")
    asyncio.run(_serve(host, int(port), options.delay))


if __name__ == "__main__":
    main()
