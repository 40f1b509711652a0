"""What a program might try if the language let it; run in a worker to see the limits hold."""

import builtins
import ctypes
import os
import resource
import socket
import subprocess
import sys
import threading

import numpy as np

NAME = "tests.reward_llm.hostile"
SECRET = "REWARD_LLM_TEST_SECRET"


def environment():
    return sorted(os.environ)


def change_the_environment():
    os.environ["X"] = "1"


def files():
    return os.listdir(".")


def read_parents_environment():
    return open(f"/proc/{os.getppid()}/environ", "rb").read()


def read_a_file():
    return open("/etc/passwd").read()


def read_by_descriptor():
    return os.open("/etc/passwd", os.O_RDONLY)


def write_a_file():
    return open("written.txt", "w").write("x")


def create_a_module():
    return os.open("written.py", os.O_RDONLY | os.O_CREAT)


def make_a_directory():
    return os.mkdir("made")


def remove_a_file():
    return os.remove(__file__)


def open_a_socket():
    return socket.socket()


def resolve_a_name():
    return socket.getaddrinfo("localhost", 80)


def start_a_process():
    return subprocess.run(["true"])


def run_a_shell():
    return os.system("true")


def fork():
    return os.fork()


def replace_itself():
    return os.execv("/bin/true", ["true"])


def kill_the_parent():
    return os.kill(os.getppid(), 0)


def call_the_system():
    return ctypes.CDLL(None).getpid()


def lift_a_limit():
    return resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)


def lift_the_time_limit():
    return resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY,) * 2)


def lift_a_limit_from_outside():
    return resource.prlimit(0, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)


def limits():
    names = ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_AS")
    return [resource.getrlimit(getattr(resource, name)) for name in names]


def allocate():
    return len(bytearray(8 << 30))


def allocate_in_steps():
    kept = []
    while True:
        kept.append(np.empty(64 << 20, np.uint8))


def run_for_ever():
    while True:
        pass


def wait_for_ever():
    threading.Event().wait()


def print_something():
    print("\x00\x00\x00\x02{}" * 1000, flush=True)
    print("noise" * 1000, file=sys.stderr, flush=True)
    os.write(1, b"noise")
    return "printed"


def read_input():
    return sys.stdin.read()


def leave():
    os._exit(3)


def abort():
    os.abort()


def exit_politely():
    raise SystemExit(0)


def _write_to_all(content):
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, content)
        except OSError:
            pass
    return "written"


def speak_garbage():
    return _write_to_all(b"\xff" * 64)


def speak_nonsense():
    return _write_to_all(b"\x00\x00\x00\x02{}")


def break_what_it_can():
    builtins.broken = True
    return "broken"
