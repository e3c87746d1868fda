# SPDX-License-Identifier: Apache-2.0
"""The rate of one TCP stream between two hosts of a lab: what no program can beat there. Also the two programs that measure it.

    compare_link.py receive ADDRESS | send ADDRESS SECONDS        receive prints bytes per second
"""
import socket
import subprocess
import sys
import time

PORT = 29611
BLOCK = 1 << 18


def receive(address):
    with socket.create_server((address, PORT)) as server:
        print("ready", flush=True)
        stream, _ = server.accept()
        with stream:
            block = bytearray(BLOCK)
            while stream.recv_into(block):  # what token buckets let through at once is over by then
                if block[0] == 2:
                    break
            start, total = time.monotonic(), 0
            while (count := stream.recv_into(block)) > 0:
                total += count
                end = time.monotonic()
    print(total / (end - start))


def send(address, seconds):
    with socket.create_connection((address, PORT)) as stream:
        for number, part in ((1, 0.25), (2, 1)):
            end = time.monotonic() + seconds * part
            block = bytes([number]) * BLOCK
            while time.monotonic() < end:
                stream.sendall(block)


def tcp_rate(place, seconds=1.0, tries=3):
    """Bytes per second from the lab's second host to its first: the best of some tries, for other work only makes a link slower."""
    return max(one_rate(place, seconds) for _ in range(tries))


def one_rate(place, seconds):
    program = [sys.executable, __file__]
    address = place.addresses()[0]
    server = subprocess.Popen(place.inside(0, [*program, "receive", address]), stdout=subprocess.PIPE, text=True)
    try:
        server.stdout.readline()
        subprocess.run(place.inside(1, [*program, "send", address, str(seconds)]), check=True, timeout=60 + 20 * seconds)
        return float(server.communicate(timeout=60)[0])
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(sys.argv[2])
    else:
        send(sys.argv[2], float(sys.argv[3]))
