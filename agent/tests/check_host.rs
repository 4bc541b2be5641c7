//! `check-host` against hosts that keep the contract, and against one that is broken in each of many ways: it must
//! find every one of them, and name the rule.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{fs, path::Path, process::Stdio, time::Duration};

use agent::check_host::{self, Options, rules};
use bytes::Bytes;
use durable_sdk::{Context, DurableServer, Host, LoadError, ServerName, State};
use futures::{StreamExt, stream};
use hyper::{Method, Request, Response};
use tempfile::TempDir;
use tokio::{
    net::UnixStream,
    process::{Child, Command},
    time::sleep,
};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/notes-python");

fn options(dir: &Path) -> Options {
    Options {
        socket: dir.join("host.sock"),
        kind: Some("notes".into()),
        change: "POST / %n".parse().unwrap(),
        config: None,
        max_state_bytes: 64 << 20,
        timeout_seconds: 20,
    }
}

/// What `check-host` prints, and whether all passed.
async fn check(options: &Options) -> (String, bool) {
    let mut printed = String::new();
    let passed = check_host::run(options, |outcome| printed.extend([outcome.to_string(), "\n".into()])).await;
    (printed, passed)
}

/// The example, with this part of its contract replaced by that.
struct Python {
    dir: TempDir,
    _process: Child,
}

impl Python {
    async fn start(replace: &str, with: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let contract = fs::read_to_string(format!("{EXAMPLE}/durable.py")).unwrap();
        assert!(contract.contains(replace), "not in durable.py any more: {replace}");
        fs::write(dir.path().join("durable.py"), contract.replacen(replace, with, 1)).unwrap();
        fs::copy(format!("{EXAMPLE}/notes.py"), dir.path().join("notes.py")).unwrap();
        let process = Command::new("python3")
            .arg(dir.path().join("notes.py"))
            .env("DURABLE_DIR", dir.path())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("python3 is installed: e2e/setup does it");
        let socket = dir.path().join("host.sock");
        for _ in 0..2000 {
            if UnixStream::connect(&socket).await.is_ok() {
                return Self { dir, _process: process };
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("the example does not listen after 20 s");
    }
}

#[tokio::test]
async fn the_python_example_keeps_the_contract() {
    let python = Python::start("", "").await;
    let (printed, passed) = check(&options(python.dir.path())).await;
    assert!(passed, "{printed}");
    assert!(printed.contains("pass  a large state in: 67108864 bytes"), "{printed}");
    assert_eq!(printed.lines().count(), 25, "{printed}");
}

/// The same as the example.
struct Notes(Vec<String>);

impl DurableServer for Notes {
    const TYPE: &str = "notes";
    const STATE_VERSION: u32 = 1;

    fn load(_: &ServerName, _: Option<serde_json::Value>, state: Option<State>) -> Result<Self, LoadError> {
        let Some(state) = state else { return Ok(Self(Vec::new())) };
        serde_json::from_slice(&state.body).map(Self).map_err(LoadError::new)
    }

    async fn handle(&mut self, request: Request<Bytes>, _: &mut Context) -> Response<Bytes> {
        if *request.method() == Method::POST {
            self.0.push(String::from_utf8_lossy(request.body()).into_owned());
        }
        Response::new(self.0.len().to_string().into())
    }

    fn snapshot(&self) -> Bytes {
        serde_json::to_vec(&self.0).unwrap().into()
    }
}

#[tokio::test]
async fn the_sdk_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let host =
        tokio::spawn(Host::new().serve::<Notes>().listen(dir.path()).unwrap().serve_until(std::future::pending()));
    let (printed, passed) = check(&options(dir.path())).await;
    assert!(passed, "{printed}");
    assert!(printed.contains("pass  a large state in: 67108864 bytes"), "{printed}");
    host.abort();
}

#[tokio::test]
async fn nobody_there_is_said_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (printed, passed) = check(&options(dir.path())).await;
    assert!(!passed);
    assert!(printed.starts_with("FAIL  describe\n      sent      GET /.durable/v1/describe\n"), "{printed}");
    assert!(printed.contains("cannot be reached") && printed.contains("with --socket"), "{printed}");
}

#[tokio::test]
async fn a_request_that_does_not_fit_the_host_is_said_to() {
    let python = Python::start("", "").await;
    let options = Options { change: "BREW / %n".parse().unwrap(), ..options(python.dir.path()) };
    let (printed, passed) = check(&options).await;
    assert!(!passed);
    assert!(printed.contains("FAIL  first start") && printed.contains("say one with --change"), "{printed}");
    for wrong in ["POST", "", "POST messages", "POST /.durable/v1/x", "P:ST /"] {
        assert!(wrong.parse::<check_host::Change>().is_err(), "{wrong}");
    }
}

/// What is broken: by replacing this with that; what then fails first, what came, and the rule's beginning.
const BROKEN: &[(&str, &str, &str, [&str; 3])] = &[
    (
        "garbage for JSON",
        "json.dumps(about).encode()",
        "json.dumps(about).encode() + b\"garbage\"",
        ["describe", "trailing characters", "`describe` answers 200"],
    ),
    (
        "another contract",
        "{\"contract\": 1,",
        "{\"contract\": 2,",
        ["describe", "it speaks contract 2", "`describe` answers 200"],
    ),
    (
        "a version that it cannot read itself",
        "\"loads\": kind.LOADS",
        "\"loads\": [7]",
        ["describe", "loads [7]", "`desc"],
    ),
    ("a socket for itself", "os.umask(0o111)", "os.umask(0o177)", ["socket", "mode 0600", "The socket has mode 0666"]),
    (
        "another status for success",
        "        return 200, self.mark(self.app.state()), b\"\"\n\n    def freeze",
        "        return 201, self.mark(self.app.state()), b\"\"\n\n    def freeze",
        ["first start", "201 Created is no answer", "`start` answers 200"],
    ),
    (
        "no mark",
        "{\"Durable-Instance\": INSTANCE, ",
        "{",
        ["first start", "durable-instance is missing", "`start` answers 200"],
    ),
    (
        "a mark of another instance",
        "{\"Durable-Instance\": INSTANCE, ",
        "{\"Durable-Instance\": 1, ",
        ["first start", "Durable-Instance: 1", "Marks bear"],
    ),
    (
        "never an answer",
        "        self.phase = \"frozen\"\n",
        "        threading.Event().wait()\n",
        ["freeze", "did not answer within", "`freeze` waits"],
    ),
    (
        "requests are answered after freeze",
        "self.closed or self.phase != \"active\" or",
        "self.phase not in (\"active\", \"frozen\") or",
        ["freeze", "201", "A request for a server that is not active here"],
    ),
    (
        "requests are answered in standby",
        "self.closed or self.phase != \"active\" or",
        "self.phase not in (\"active\", \"standby\") or",
        ["standby", "201", "A request for a server that is not active here"],
    ),
    (
        "requests of every epoch are answered",
        " or epoch != self.epoch:\n                return NOT_HERE",
        ":\n                return NOT_HERE",
        ["late calls", "201", "A request for a server that is not active here"],
    ),
    (
        "not here is not said",
        "{\"Durable-Not-Here\": \"1\"}",
        "{}",
        ["standby", "421", "A request for a server that is not active here"],
    ),
    (
        "not here is always said",
        "return status, {}, answer",
        "return status, NOT_HERE[1], answer",
        ["first start", "201 with Durable-Not-Here: 1", "No other answer bears"],
    ),
    ("late calls are done", "if call < self.seen:", "if False:", ["late calls", "409", "A `start`, `freeze`, `thaw`"]),
    (
        "an attempt outdoes an epoch",
        "if call < self.seen:",
        "if call[1] < self.seen[1]:",
        ["start from a state", "412", "A `start`"],
    ),
    (
        "late calls are done after stop",
        "    def stop(self, *_):\n",
        "    def stop(self, *_):\n        self.seen = (0, 0)\n",
        ["late calls", "200", "A `start`, `freeze`, `thaw`"],
    ),
    (
        "a late snapshot is given",
        "if epoch < self.seen[0]:",
        "if False:",
        ["late calls", "409", "A `snapshot` at a lower epoch"],
    ),
    (
        "a higher epoch is taken for this one",
        "if epoch != self.epoch or self.phase not in phases:",
        "if self.phase not in phases:",
        ["a higher epoch", "200", "A `snapshot`, `freeze`, `thaw` or `activate` at a higher"],
    ),
    ("changes do not count", "self.revision += changed", "pass", ["snapshot", "which came with", "One mark names"]),
    (
        "stop forgets the revision",
        "    def stop(self, *_):\n",
        "    def stop(self, *_):\n        self.revision = 0\n",
        ["start from a state", "which was 2 before", "The revision grows"],
    ),
    (
        "another checksum",
        "zlib.crc32(state)}",
        "zlib.adler32(state)}",
        ["snapshot", "CRC-32 is", "`snapshot` answers 200"],
    ),
    (
        "bytes that differ for one state",
        "state = self.app.state()\n        if",
        "state = self.app.state() + b\" \" * random.randrange(9**9 % 99)\n        if",
        ["snapshot", "which came with", "One mark names one sequence"],
    ),
    (
        "another instance's revision is taken for its own",
        "(headers.get(\"Durable-Instance\"), headers.get(\"Durable-Revision\")) == (str(INSTANCE), str(self.revision))",
        "headers.get(\"Durable-Revision\") == str(self.revision)",
        ["snapshot", "304", "`snapshot` answers 304"],
    ),
    (
        "nothing is ever unchanged",
        "if (headers.get(\"Durable-Instance\"),",
        "if False and (headers.get(\"Durable-Instance\"),",
        ["snapshot", "200, revision", "`snapshot` answers 304"],
    ),
    (
        "the state is not loaded",
        "self.kind(config, version, state)",
        "self.kind(config, version, None)",
        ["start from a state", "an older state", "`start` answers 200"],
    ),
    (
        "every state is loaded",
        "if zlib.crc32(body) != mark[2]:",
        "if False:",
        ["what cannot be loaded", "200", "What cannot"],
    ),
    (
        "every version is loaded",
        "if state is not None and version not in self.kind.LOADS:",
        "if False:",
        ["what cannot be loaded", "200", "What cannot be loaded"],
    ),
    (
        "a newer state is not taken",
        "            self.load(self.config, version, state)\n        elif",
        "            pass\n        elif",
        ["activate with a newer state", "an older state", "`activate` answers 200"],
    ),
    (
        "any standby will do",
        "elif mark is None or mark != self.standby:",
        "elif False:",
        ["standby", "200", "`activate` with `unchanged`"],
    ),
    (
        "what is frozen is not forgotten",
        "        self.forget()\n        return 200",
        "        self.phase == \"frozen\" or self.forget()\n        return 200",
        ["stop", "check-", "`servers` lists"],
    ),
    (
        "thaw does nothing",
        "        self.expect(epoch, \"active\", \"frozen\")\n        self.phase = \"active\"",
        "        self.expect(epoch, \"active\", \"frozen\")",
        ["thaw", "421", "`thaw` answers 200"],
    ),
    (
        "a start replaces what is here",
        "        if self.phase:\n            raise",
        "        if False:\n            raise",
        ["a higher epoch", "200", "`start` of a uid that is here"],
    ),
    (
        "an unknown uid is no error",
        "if self.phase is None:\n            raise Refused(404,",
        "if self.phase is None:\n            raise Refused(409,",
        ["stop", "409", "`snapshot`, `freeze`, `thaw` and `activate` of a uid"],
    ),
    (
        "requests that waited come after the freeze",
        "        with self.turn:\n            if self.closed or self.phase != \"active\" or epoch != self.epoch:\n                return NOT_HERE\n",
        "        if self.phase != \"active\" or epoch != self.epoch:\n            return NOT_HERE\n        with \
         self.turn:\n            threading.Event().wait(0.003)\n            if not self.app:\n                return NOT_HERE\n",
        ["freeze under load", "", "No request is answered with success"],
    ),
    (
        "a refused request is done nevertheless",
        "                return NOT_HERE\n            changed",
        "                if self.phase == \"frozen\":\n                    self.app.handle(method, path, body)\n                \
         return NOT_HERE\n            changed",
        ["freeze", "which came with", "One mark names"],
    ),
    (
        "a body is left unread",
        "            body = self.body()\n",
        "            body = b\"\" if self.headers[\"Content-Length\"] == str(1 << 16) else self.body()\n",
        ["connections", "", "Every answer leaves its connection"],
    ),
    (
        "half a body is taken for all of it",
        "if len(part) < length:",
        "if False:",
        ["bodies", "200, revision", "A request's body comes"],
    ),
    (
        "chunks are not understood",
        "if self.headers.get(\"Transfer-Encoding\", \"\").lower() != \"chunked\":",
        "if True:",
        ["bodies", "before its body was whole", "A request's body comes"],
    ),
    (
        "a body is read in the server's turn",
        "            body = self.body()\n",
        "            server = SERVERS.get(self.headers.get(\"Durable-Uid\"))\n            \
         with server.turn if server else threading.Lock():\n                body = self.body()\n",
        ["bodies", "did not answer within", "A request is being handled only once"],
    ),
    (
        "a connection for each call",
        "protocol_version = \"HTTP/1.1\"",
        "protocol_version = \"HTTP/1.0\"",
        ["connections", "the host has closed", "Every answer leaves its connection"],
    ),
    (
        "impatience",
        "protocol_version = \"HTTP/1.1\"",
        "protocol_version = \"HTTP/1.1\"\n    timeout = 0.7",
        ["connections", "the host has closed", "Every answer leaves its connection"],
    ),
    (
        "a limit of its own",
        "MAX_STATE = 64 << 20",
        "MAX_STATE = 1 << 16",
        ["a large state in", "", "A host reads and writes"],
    ),
    (
        "a lease's end is not noticed",
        "lease[0] == generation and boot_ms() < lease[1]",
        "lease[0] == generation",
        ["leases", "201", "A host with `lease` among"],
    ),
    (
        "an earlier generation is served on",
        "lease[0] == generation and boot_ms() < lease[1]",
        "boot_ms() < lease[1]",
        ["leases", "201", "With a `lease` of a later"],
    ),
    (
        "a generation that is over lives again",
        "if boot_ms() >= (known[1] if",
        "if boot_ms() >= (deadline if",
        ["leases", "", "A `lease` of a generation that is over"],
    ),
    (
        "a late lease counts",
        "if known and generation < known[0]:",
        "if False:",
        ["leases", "", "A `lease` of a lower generation"],
    ),
    (
        "what an earlier generation left is in the way",
        "if self.phase and self.generation < generation:",
        "if False:",
        ["leases", "409", "With a `lease` of a later"],
    ),
    (
        "what it was told of leases is not known",
        "\"generation\": LEASE[0]",
        "\"generation\": 7",
        ["adoption", "generation 7", "A host with `adopt` among"],
    ),
    (
        "under which lease a server was started is not known",
        "self.epoch, self.generation, self.phase",
        "self.epoch, 7, self.phase",
        ["adoption", "Generation(7)", "A host with `adopt` among"],
    ),
    (
        "an earlier agent's calls are done",
        "if LEASE and call[1] < LEASE[2]:",
        "if False:",
        ["adoption", "", "A `start`, `freeze`, `thaw`, `activate` or `stop` whose attempt is"],
    ),
    (
        "what is no call reaches a server",
        "if not path.startswith(\"/.durable/\"):",
        "if not path.startswith(\"/.durable/v1/\"):",
        ["other paths", "200", "Any other path that begins"],
    ),
    (
        "headers are guessed",
        "        raise Refused(400, f\"{name} must be",
        "        return 1\n        raise Refused(400, f\"{name} must be",
        ["malformed headers", "", "A header that is missing"],
    ),
    (
        "no sentences",
        "body = sentence.encode()",
        "body = b\"\"",
        ["standby", "409 and an empty body", "Every refusal has a sentence"],
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broken_host_is_found_out() {
    let wrong = stream::iter(BROKEN).map(explains).buffer_unordered(4);
    let wrong: Vec<String> = wrong.filter_map(|wrong| async { wrong }).collect().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Nothing if the first failure is the one that is expected.
async fn explains((what, replace, with, expected): &(&str, &str, &str, [&str; 3])) -> Option<String> {
    let python = Python::start(replace, with).await;
    // No host has to answer in three seconds; only those that never do are to be found soon.
    let timeout_seconds = if expected[1] == "did not answer within" { 3 } else { 20 };
    let options = Options { max_state_bytes: 1 << 20, timeout_seconds, ..options(python.dir.path()) };
    let (printed, passed) = check(&options).await;
    let first = printed.split("FAIL  ").nth(1).unwrap_or_default().split("\npass").next().unwrap_or_default();
    let part = |name: &str| first.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap_or_default().trim();
    let [name, came, rule] = expected;
    let found = !passed
        && first.lines().next() == Some(name)
        && part("came").contains(came)
        && part("contract").starts_with(rule)
        && !part("sent").is_empty()
        && !part("change").is_empty();
    (!found).then(|| format!("{what}: expected {expected:?}, and got\n{printed}"))
}

#[tokio::test]
async fn a_host_that_hangs_does_not_hang_the_check() {
    let python =
        Python::start("def answer(method, path, headers, body):\n", "def answer(*_):\n    threading.Event().wait()\n")
            .await;
    let options = Options { timeout_seconds: 1, ..options(python.dir.path()) };
    let (printed, passed) = check(&options).await;
    assert!(!passed && printed.contains("did not answer within 1s"), "{printed}");
}

#[test]
fn every_rule_is_a_sentence_of_the_contract() {
    let contract = include_str!("../../docs/host-contract.md");
    let (_, listed) = contract.split_once("## The rules").unwrap();
    for rule in rules::ALL {
        assert!(
            listed.contains(&format!("\n- {}\n", rule.contract)),
            "not in docs/host-contract.md: {}",
            rule.contract
        );
    }
    let unchecked: Vec<_> = listed
        .lines()
        .filter_map(|line| line.strip_prefix("- "))
        .filter(|sentence| rules::ALL.iter().all(|rule| rule.contract != *sentence))
        .collect();
    // It takes a server that is slow on purpose, which no check can ask of a host that it does not know.
    assert_eq!(
        unchecked,
        ["A call that was overtaken by a later one while it waited is answered 412 and does nothing."]
    );
}
