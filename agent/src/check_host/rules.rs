//! The sentences of the contract that are checked, each with what to change in a host that breaks it.

/// One sentence of `docs/host-contract.md`.
#[derive(Debug)]
pub struct Rule {
    /// As it stands there.
    pub contract: &'static str,
    /// What usually mends it.
    pub change: &'static str,
}

macro_rules! rules {
    ($($name:ident: $contract:literal => $change:literal;)*) => {
        $(pub(super) const $name: &Rule = &Rule { contract: $contract, change: $change };)*

        /// All of them.
        pub const ALL: &[&Rule] = &[$($name),*];
    };
}

rules! {
    LISTENS: "The host listens on `$DURABLE_DIR/host.sock` as long as it runs, and speaks HTTP/1.1."
        => "start the host, and give the path of its socket with --socket";
    SOCKET: "The socket has mode 0666: the two containers run as different users."
        => "set the umask to 0111 before the socket is bound, or chmod it to 0666";
    DESCRIBE: "`describe` answers 200 and a JSON object with `contract` 1, `instance` (a number below 2^53, drawn at process start) and `types`, each with its `name`, its `stateVersion`, and `loads`, the versions that it reads, that one among them."
        => "answer GET /.durable/v1/describe with, for example, {\"contract\": 1, \"instance\": 81, \"types\": [{\"name\": \"room\", \"stateVersion\": 2, \"loads\": [1, 2]}]}";
    LIST: "`servers` lists each server that is here, standby, active or frozen, with its uid, `namespace/name`, type, epoch, phase and revision, and no other."
        => "make the list from the same table that the calls change, and leave stopped servers out";
    OTHER_PATHS: "Any other path that begins with `/.durable/` answers 404, and never reaches a server."
        => "look at the path before the Durable-Uid header: what begins with /.durable/ is never a user's request";
    CONNECTION: "Every answer leaves its connection fit for the next call, those that refuse a body included, and a connection stays open through more than a second of silence."
        => "read a request's body to its end before answering, send Content-Length, speak HTTP/1.1, and raise the server's keep-alive timeout above a second";
    SIZE: "A host reads and writes states as large as the pool's `sync.maxStateBytes`, 64 MiB unless that says otherwise."
        => "raise the limit of a request's body under /.durable/, and read and write until all bytes are through";
    REVISION: "The revision grows with every change of the state, and never goes back while the process lives, also across `stop` and `start`."
        => "count one up in each request that may have changed the state and in each load, and keep the count of a uid when its server is stopped";
    ONE_MARK: "One mark names one sequence of bytes: of one server, the same instance and revision never come with two checksums."
        => "take the state and the revision under one lock, and write the same state as the same bytes (sorted keys), or count one up when they differ";
    INSTANCE: "Marks bear the `instance` of `describe`."
        => "draw the instance once, at process start, and send it in Durable-Instance of every mark";
    START: "`start` answers 200 with a mark once the server runs from the state that came, or from none."
        => "load the body if Durable-State is full, begin anew if it is none, and answer with Durable-Instance, -Revision and -Checksum of the state as you would write it now";
    LOAD: "What cannot be loaded is answered 422 with a sentence, and nothing of it stays: another type, a version that is not in `loads`, bytes that do not have their `Durable-Checksum`, a config that is not understood."
        => "check Durable-Type, Durable-State-Version and the body's CRC-32 first, and note the server only when it is loaded";
    START_ONCE: "`start` of a uid that is here already is answered 409, so a `start` that comes twice starts once."
        => "look whether the uid is here, and note it, under one lock";
    STOP: "`stop` forgets the server, whatever its phase and epoch, and answers 200, also if there is nothing to forget."
        => "drop the server from the table in every phase; only its highest (epoch, attempt) and its revision stay";
    UNKNOWN: "`snapshot`, `freeze`, `thaw` and `activate` of a uid that is not here are answered 404."
        => "answer 404 with a sentence when the uid has no server";
    SNAPSHOT: "`snapshot` answers 200 with the state, its version and its mark, and the server serves on."
        => "send the state as body, with Durable-State-Version and the three headers of the mark; the checksum is CRC-32 (IEEE) of the body, in decimal";
    SINCE: "`snapshot` answers 304 with the mark, and `freeze` 204, exactly if `Durable-Instance` and `Durable-Revision` of the call are those of the present state."
        => "compare both headers with the present mark, and the revision only together with the instance";
    FREEZE: "`freeze` waits for the request that is being handled and answers with the last state: nothing changes it any more, and a second `freeze` answers the same bytes and mark."
        => "set the phase to frozen and take the state under the lock that requests are handled under; do not touch the state after that";
    NOTHING_AFTER: "No request is answered with success after the last state was taken unless its change is in that state, and none that is not here has changed it."
        => "look at the phase under the same lock that the request is handled under, after waiting for it, not before";
    THAW: "`thaw` answers 200 and the server serves on from the same state; of an active server it answers 200 and does nothing."
        => "set the phase back to active, and nothing else";
    STANDBY: "A standby holds the state, loaded, and serves nothing; `snapshot`, `freeze` and `thaw` of it are answered 409."
        => "give standby a phase of its own, in which only activate and stop are done";
    ACTIVATE: "`activate` answers 200 with the mark in this host, and the standby serves from the state that came, or with `unchanged` from its own."
        => "with Durable-State full, load the body in place of the standby's state; with unchanged, keep that; then set the phase to active";
    ACTIVATE_OTHER: "`activate` with `unchanged` is answered 409 unless the mark is the one that came with the standby's state."
        => "keep the three headers of the mark that start brought, and compare all of them";
    ACTIVATE_ONCE: "`activate` of a server that is active or frozen is answered 409, so an `activate` that comes twice is done once."
        => "activate only what is standby, and look at the phase under the server's lock";
    ACTIVE: "An active server is given every request for its uid and epoch."
        => "take every path that does not begin with /.durable/ as a request for the server of Durable-Uid. If this request is not one that changes your server, say one with --change 'METHOD /path body'; %n in it is another text each time";
    NOT_HERE: "A request for a server that is not active here at exactly that epoch (unknown, standby, frozen, stopped, another epoch) is answered 421 with `Durable-Not-Here: 1` and not given to the server."
        => "compare the uid, the epoch and the phase, under the server's lock, before the request is handled; otherwise answer 421 with Durable-Not-Here: 1, so that the agent sends it where the server is";
    BODY: "A request's body comes with `Content-Length` or in chunks; one that breaks off is not given to the server."
        => "read the body to its end before the request is handled, after Transfer-Encoding: chunked until the chunk of length 0, and drop the request if the connection ends before";
    SLOW_BODY: "A request is being handled only once its body is whole: `freeze` does not wait for one that is still coming."
        => "read the body before the server's lock is taken, not under it";
    HERE: "No other answer bears `Durable-Not-Here`."
        => "send Durable-Not-Here only where the request was not given to the server";
    LATE: "A `start`, `freeze`, `thaw`, `activate` or `stop` whose (epoch, attempt) is lower than one that the host has seen for this uid is answered 412 and does nothing, also after `stop`."
        => "keep the highest (epoch, attempt) of each uid, also when it is stopped; compare as a pair, epoch first, before anything else is done";
    LATE_SNAPSHOT: "A `snapshot` at a lower epoch than one that the host has seen is answered 412."
        => "compare the snapshot's epoch with the highest one seen for this uid";
    HIGHER: "A `snapshot`, `freeze`, `thaw` or `activate` at a higher epoch than that of the server here is answered 409."
        => "compare the call's epoch with that of the server, and do it only if they are equal";
    LEASE_ENDS: "A host with `lease` among its `features` handles no request, and answers none with success, from the deadline of its newest `lease` on: it looks at its own clock before and after."
        => "compare Durable-Deadline with the clock (CLOCK_BOOTTIME, in milliseconds) under the lock that requests are handled under: from then on answer 421 with Durable-Not-Here: 1, and 503 to what was begun before";
    LEASE_OLDER: "With a `lease` of a later generation nothing of an earlier one is served any more, and what that left is not in the way of a `start`."
        => "note with each server the generation that was valid when it was started, serve it only while that is still the newest, and drop an older one when its uid is started again";
    LEASE_ONCE: "A `lease` of a generation that is over is answered 409, and so is a `start`, `thaw` or `activate` then: nothing makes a generation live again."
        => "refuse a lease whose generation is the known one once its deadline is past, before the deadline is set";
    LEASE_LATE: "A `lease` of a lower generation than one that the host has seen is answered 412 and does nothing."
        => "keep the highest generation, and compare before anything is set";
    LEASE_STATE: "When the lease is over, `snapshot`, `freeze` and `stop` are answered as ever."
        => "only what has a server serve depends on the lease: an agent that asks for the last state must still get it";
    ADOPT_KNOWN: "A host with `adopt` among its `features` answers `GET` of `lease` with the generation and the deadline of its newest `lease`, and `servers` with the generation under which each server was started."
        => "keep the three numbers of the newest lease, answer GET /.durable/v1/lease with, for example, {\"generation\": 1764316800000, \"deadline\": 93411250}, and add \"generation\" to each line of the list";
    ADOPT_ATTEMPT: "A `start`, `freeze`, `thaw`, `activate` or `stop` whose attempt is lower than the `Durable-Attempt` of its newest `lease` is answered 412 and does nothing, whatever its epoch."
        => "compare the attempt alone, when the call comes and again when it has its turn, and answer a lease that raises it once no call is half done";
    MALFORMED: "A header that is missing or cannot be read is answered 400."
        => "read all headers before anything is done, and refuse what is not a decimal number or one of the words";
    SENTENCE: "Every refusal has a sentence for its reader, as `text/plain`."
        => "send a body that says what was refused and why: it ends up in the server's status";
}
