//! Where things lie under a prefix:
//!
//! ```text
//!  <hash4>/<namespace>/<name>/<uid>/<sequence as 16 hex digits>   the records; the hash is of namespace and name, so that
//!                                                                 all logs of one name are found by one listing
//!  heartbeats/<pod uid>/<generation>-<counter>                   signs of life, see `heartbeats`
//!  deleted/<namespace>/<name>/<uid>                               logs that go a day after their Tombstone
//!  owner, probe/…                                                 see `probe`
//! ```

use handoff::{Sequence, ServerId, ServerUid};

use crate::objects::StoreError;

/// Under the prefix, whether it is empty or has slashes around it.
pub(crate) fn join(prefix: &str, rest: &str) -> String {
    match prefix.trim_matches('/') {
        "" => rest.to_owned(),
        prefix => format!("{prefix}/{rest}"),
    }
}

/// What all keys of all logs of one name begin with; ends in a slash.
pub(crate) fn of_name(prefix: &str, namespace: &str, name: &str) -> Result<String, StoreError> {
    let path = format!("{}/{}", part(namespace)?, part(name)?);
    let hash = crc32fast::hash(path.as_bytes()) >> 16;
    Ok(join(prefix, &format!("{hash:04x}/{path}/")))
}

/// What all keys of one log begin with; ends in a slash.
pub(crate) fn of_log(prefix: &str, server: &ServerId) -> Result<String, StoreError> {
    Ok(format!("{}{}/", of_name(prefix, &server.namespace, &server.name)?, part(&server.uid.0)?))
}

/// The key of the record at `sequence` of the log whose keys begin with `log`.
pub(crate) fn of_record(log: &str, sequence: Sequence) -> String {
    format!("{log}{:016x}", sequence.0)
}

/// The log and the record that a key is of; `None` for any other key.
pub(crate) fn parse(prefix: &str, key: &str) -> Option<(ServerId, Sequence)> {
    let mut parts = key.strip_prefix(&join(prefix, ""))?.split('/').skip(1);
    let server = server(&mut parts)?;
    let sequence = Sequence(u64::from_str_radix(parts.next()?, 16).ok()?);
    (of_record(&of_log(prefix, &server).ok()?, sequence) == key).then_some((server, sequence))
}

/// What the keys of all marks begin with.
pub(crate) fn marks(prefix: &str) -> String {
    join(prefix, "deleted/")
}

/// The mark of a log that is to go.
pub(crate) fn mark(prefix: &str, server: &ServerId) -> Result<String, StoreError> {
    let ServerId { namespace, name, uid } = server;
    Ok(format!("{}{}/{}/{}", marks(prefix), part(namespace)?, part(name)?, part(&uid.0)?))
}

/// The log that a mark is of; `None` for any other key.
pub(crate) fn marked(prefix: &str, key: &str) -> Option<ServerId> {
    let server = server(&mut key.strip_prefix(&marks(prefix))?.split('/'))?;
    (mark(prefix, &server).ok()? == key).then_some(server)
}

fn server<'a>(parts: &mut impl Iterator<Item = &'a str>) -> Option<ServerId> {
    let mut next = || parts.next().map(str::to_owned);
    Some(ServerId { namespace: next()?, name: next()?, uid: ServerUid(next()?) })
}

/// A slash could make one server's log part of another's.
pub(crate) fn part(part: &str) -> Result<&str, StoreError> {
    if part.is_empty() || part.len() > 253 || part.chars().any(|c| c == '/' || c.is_control()) {
        return Err(StoreError::Config(format!("{part:?} cannot be part of a key: not a Kubernetes name or uid")));
    }
    Ok(part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(namespace: &str, name: &str, uid: &str) -> ServerId {
        ServerId { namespace: namespace.into(), name: name.into(), uid: ServerUid(uid.into()) }
    }

    #[test]
    fn names_that_could_leave_their_place_are_refused() {
        for bad in ["", "a/b", "a\n", &"a".repeat(254)] {
            for server in [id(bad, "n", "u"), id("s", bad, "u"), id("s", "n", bad)] {
                assert!(matches!(of_log("p", &server), Err(StoreError::Config(_))), "{server:?}");
                assert!(matches!(mark("p", &server), Err(StoreError::Config(_))), "{server:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_a_key_is_of_is_read_from_it(
            prefix in "(/?[a-z0-9]{1,9}/?)?", [namespace, name, uid] in ["[a-z0-9.-]{1,20}", "[a-z0-9.-]{1,20}", "[a-z0-9-]{1,40}"],
            sequence: u64,
        ) {
            let server = id(&namespace, &name, &uid);
            let log = of_log(&prefix, &server).unwrap();
            prop_assert!(log.starts_with(&of_name(&prefix, &namespace, &name).unwrap()));
            let key = of_record(&log, Sequence(sequence));
            prop_assert_eq!(parse(&prefix, &key), Some((server.clone(), Sequence(sequence))));
            prop_assert_eq!(marked(&prefix, &key), None);
            let mark = mark(&prefix, &server).unwrap();
            prop_assert_eq!(marked(&prefix, &mark), Some(server));
            prop_assert_eq!(parse(&prefix, &mark), None);
        }

        #[test]
        fn any_other_key_is_of_nothing(prefix in "[a-z/]{0,6}", key in "[a-z0-9/.é]{0,80}") {
            // A key of a log ends in its sixteen digits and has its own hash in it, so that chance makes none.
            prop_assert_eq!(parse(&prefix, &key), None);
            if let Some(server) = marked(&prefix, &key) {
                prop_assert_eq!(mark(&prefix, &server).unwrap(), key);
            }
        }
    }
}
