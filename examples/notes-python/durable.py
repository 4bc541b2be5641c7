"""The host contract (docs/host-contract.md), version 1, in Python's standard library. See notes.py for what is served.

A kind of server is a class with TYPE, VERSION (the format that `state` writes) and LOADS (the formats that it takes), and
- __init__(config, version, state): from what was written, or from None; ValueError if it cannot be loaded;
- state(): bytes, the same ones for the same state;
- handle(method, path, body): answers one request with a status, bytes, and whether the state changed. One at a time.
"""
import base64, json, os, random, signal, socketserver, sys, threading, time, zlib
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote

MAX_STATE = 64 << 20  # bytes; the pool's sync.maxStateBytes
INSTANCE = random.randrange(1, 2**53)
NOT_HERE = 421, {"Durable-Not-Here": "1"}, b"not active here at this epoch\n"


class Refused(Exception):
    """A status and a sentence."""


LEASE = None  # generation, deadline and the agent's first attempt, once it spoke of one: an older agent does not
LEASING = threading.Lock()
PASSING = threading.Lock()  # held by each call while it does what it was asked to


def boot_ms():
    """The agent's clock too: it goes on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def allows(generation):
    lease = LEASE
    return lease is None or lease[0] == generation and boot_ms() < lease[1]


def must_allow(generation):
    if not allows(generation):
        raise Refused(409, f"the lease of generation {generation} is over")


def renew(generation, deadline, first):
    global LEASE
    with LEASING:
        known = LEASE
        if known and generation < known[0]:
            raise Refused(412, f"a later generation was seen: {known[0]}")
        is_known = known and generation == known[0]
        if boot_ms() >= (known[1] if is_known else deadline):
            raise Refused(409, f"generation {generation} is over")
        if is_known:
            deadline, first = max(deadline, known[1]), max(first, known[2])
        LEASE = generation, deadline, first
    with PASSING:  # what an earlier agent asked for is done now, or never
        return 200, {}, b""


def known_lease():
    if LEASE is None:
        raise Refused(404, "no agent has told this host of a lease")
    return 200, {}, json.dumps({"generation": LEASE[0], "deadline": LEASE[1]}).encode()


class Server:
    """What is here of one uid. Stays when its server is stopped: the highest call and the revision are remembered."""

    def __init__(self, uid):
        self.uid, self.seen, self.closed, self.revision = uid, (0, 0), False, 0
        self.noting = threading.Lock()
        self.turn = threading.Lock()  # held while a request is handled, and by each control call: they never overlap
        self.forget()

    def forget(self):
        self.phase = self.kind = self.app = self.config = self.standby = self.name = self.epoch = None
        self.generation = 0

    def note(self, call, closes):
        with self.noting:
            if call < self.seen:
                raise Refused(412, f"a later call was seen: epoch {self.seen[0]}, attempt {self.seen[1]}")
            if LEASE and call[1] < LEASE[2]:
                self.closed = self.closed and call != self.seen  # it may have waited, and requests with it
                raise Refused(412, f"its agent is gone: that of now began with attempt {LEASE[2]}")
            # A freeze or stop that waits for its turn goes before the requests that wait too.
            self.seen, self.closed = call, closes

    def expect(self, epoch, *phases):
        if self.phase is None:
            raise Refused(404, f"there is no server {self.uid} here")
        if epoch != self.epoch or self.phase not in phases:
            raise Refused(409, f"it is {self.phase} here, at epoch {self.epoch}")

    def load(self, config, version, state):
        if state is not None and version not in self.kind.LOADS:
            raise Refused(422, f"state versions {self.kind.LOADS} can be loaded, not {version}")
        try:
            self.app = self.kind(config, version, state)
        except (ValueError, RecursionError) as error:
            raise Refused(422, f"the state or the config cannot be loaded: {error}") from error
        self.revision += 1

    def mark(self, state):
        return {"Durable-Instance": INSTANCE, "Durable-Revision": self.revision, "Durable-Checksum": zlib.crc32(state)}

    def last(self, headers, unchanged):
        state = self.app.state()
        if (headers.get("Durable-Instance"), headers.get("Durable-Revision")) == (str(INSTANCE), str(self.revision)):
            return unchanged, self.mark(state), b""
        return 200, self.mark(state) | {"Durable-State-Version": self.kind.VERSION}, state

    def request(self, epoch, method, path, body):
        with self.turn:
            if self.closed or self.phase != "active" or epoch != self.epoch:
                return NOT_HERE
            changed = True  # also if it breaks off in the middle
            generation = self.generation
            if not allows(generation):
                return NOT_HERE
            try:
                status, answer, changed = self.app.handle(method, path, body)
            finally:
                self.revision += changed
            if not allows(generation):  # another pod may have answered otherwise by now
                return 503, {"Content-Type": "text/plain"}, b"the lease ended before this was answered\n"
            return status, {}, answer

    def control(self, verb, headers, body):
        epoch = number(headers, "Durable-Epoch")
        if verb == "snapshot":
            with self.turn:
                if epoch < self.seen[0]:
                    raise Refused(412, f"a later call was seen, at epoch {self.seen[0]}")
                self.expect(epoch, "active", "frozen")
                return self.last(headers, 304)
        call = epoch, number(headers, "Durable-Attempt")
        given = given_state(headers, body) if verb in ("start", "activate") else None
        config = given_config(headers) if verb == "start" else None
        if verb == "start" and headers.get("Durable-Mode") not in ("active", "standby"):
            raise Refused(400, "Durable-Mode must be active or standby")
        self.note(call, verb in ("freeze", "stop"))
        with self.turn, PASSING:
            self.note(call, False)  # it may have been overtaken while it waited
            return getattr(self, verb)(epoch, headers, config, given)

    def start(self, epoch, headers, config, given):
        generation = LEASE[0] if LEASE else 0
        must_allow(generation)
        if self.phase and self.generation < generation:
            self.forget()  # what an earlier lease left
        if self.phase:
            raise Refused(409, f"it is {self.phase} here already, at epoch {self.epoch}")
        self.kind = KINDS.get(headers.get("Durable-Type"))
        if self.kind is None:
            raise Refused(422, f"this host has no such type, but {', '.join(KINDS)}")
        version, state, standby = given
        self.load(config, version, state)
        self.name, self.config, self.standby, self.epoch = headers.get("Durable-Server"), config, standby, epoch
        self.phase, self.generation = headers["Durable-Mode"], generation
        return 200, self.mark(self.app.state()), b""

    def freeze(self, epoch, headers, *_):
        self.expect(epoch, "active", "frozen")
        self.phase = "frozen"
        return self.last(headers, 204)

    def thaw(self, epoch, *_):
        if self.phase == "frozen":
            must_allow(self.generation)
        self.expect(epoch, "active", "frozen")
        self.phase = "active"
        return 200, {}, b""

    def activate(self, epoch, headers, _, given):
        self.expect(epoch, "standby")
        must_allow(self.generation)
        version, state, mark = given
        if state is not None:
            self.load(self.config, version, state)
        elif mark is None or mark != self.standby:
            raise Refused(409, "the standby here is not of that state")
        self.phase = "active"
        return 200, self.mark(self.app.state()), b""

    def stop(self, *_):
        self.forget()
        return 200, {}, b""

    def line(self):
        names = "uid", "server", "type", "epoch", "generation", "phase", "revision"
        line = self.uid, self.name, self.kind.TYPE, self.epoch, self.generation, self.phase, self.revision
        return dict(zip(names, line))


def number(headers, name):
    text = headers.get(name, "")
    if not (text.isascii() and text.isdecimal()):
        raise Refused(400, f"{name} must be a decimal number, not {text!r}")
    return int(text)


def given_state(headers, body):
    """Version, state and mark, as far as they were given."""
    kind = headers.get("Durable-State")
    if kind not in ("full", "none", "unchanged"):
        raise Refused(400, f"Durable-State must be full, none or unchanged, not {kind!r}")
    if kind == "none":
        return None, None, None
    mark = tuple(number(headers, "Durable-" + name) for name in ("Instance", "Revision", "Checksum"))
    if kind == "unchanged":
        return None, None, mark
    if zlib.crc32(body) != mark[2]:
        raise Refused(422, "the state does not have the checksum that came with it")
    return number(headers, "Durable-State-Version"), body, mark


def given_config(headers):
    try:
        config = headers.get("Durable-Config")
        return config and json.loads(base64.b64decode(config, validate=True))
    except ValueError as error:
        raise Refused(400, f"Durable-Config is not JSON in base64: {error}") from error


KINDS = {}  # by TYPE
SERVERS = {}  # by uid


def answer(method, path, headers, body):
    if not path.startswith("/.durable/"):
        server = SERVERS.get(headers.get("Durable-Uid"))
        return server.request(number(headers, "Durable-Epoch"), method, path, body) if server else NOT_HERE
    match method, *path.split("/")[2:]:
        case "GET", "v1", "describe":
            types = [{"name": kind.TYPE, "stateVersion": kind.VERSION, "loads": kind.LOADS} for kind in KINDS.values()]
            about = {"contract": 1, "instance": INSTANCE, "features": ["lease", "adopt"], "types": types}
            return 200, {}, json.dumps(about).encode()
        case "POST", "v1", "lease":
            # An older agent does not say its first attempt.
            first = number(headers, "Durable-Attempt") if "Durable-Attempt" in headers else 0
            return renew(number(headers, "Durable-Generation"), number(headers, "Durable-Deadline"), first)
        case "GET", "v1", "lease":
            return known_lease()
        case "GET", "v1", "servers":
            here = [server.line() for server in list(SERVERS.values()) if server.phase]
            return 200, {}, json.dumps(here).encode()
        case (("GET", "v1", "servers", uid, "snapshot" as verb)
              | ("POST", "v1", "servers", uid, "start" | "freeze" | "thaw" | "activate" | "stop" as verb)):
            uid = unquote(uid)
            return SERVERS.setdefault(uid, Server(uid)).control(verb, headers, body)
    raise Refused(404, "the host contract, version 1, has no such call")


class Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept open
    wbufsize = -1  # an answer's head and body in one write

    def exactly(self, length):
        part = self.rfile.read(length)
        if len(part) < length:
            raise ConnectionError("the request breaks off")
        return part

    def body(self):
        """All of it, as far as it is not too long."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.exactly(min(int(self.headers.get("Content-Length", 0)), MAX_STATE + 1))
        body = b""
        while (size := int(self.rfile.readline().split(b";")[0], 16)) and len(body) <= MAX_STATE:
            body += self.exactly(min(size, MAX_STATE + 1))
            self.exactly(2)  # the end of the line
        while self.rfile.readline() not in (b"\r\n", b""):
            pass  # trailers
        return body

    def reply(self):
        # Always read, or the rest of it would be taken for the next request on this connection. And before the server's
        # turn begins: who sends slowly must not keep it from moving.
        try:
            body = self.body()
        except (ConnectionError, ValueError):
            self.close_connection = True
            return
        try:
            if len(body) > MAX_STATE:
                self.close_connection = True
                raise Refused(413, f"at most {MAX_STATE} bytes are taken")
            status, headers, body = answer(self.command, self.path, self.headers, body)
        except Refused as refused:
            (status, sentence), headers = refused.args, {"Content-Type": "text/plain"}
            body = sentence.encode()
        except Exception as error:
            status, headers, body = 500, {"Content-Type": "text/plain"}, repr(error).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = reply

    def log_message(self, *_):
        """Not a line for each request."""


class Host(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads, request_queue_size = True, 128


def run(*kinds):
    """Serves these kinds until SIGTERM."""
    KINDS.update({kind.TYPE: kind for kind in kinds})
    path = os.path.join(os.environ.get("DURABLE_DIR", "/run/durable"), "host.sock")
    if os.path.exists(path):
        os.unlink(path)
    os.umask(0o111)  # the socket's mode becomes 0666: the agent runs as another user
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    Host(path, Connection).serve_forever()
