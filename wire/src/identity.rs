//! How agents know each other: by a certificate of the operator that names a pod and its pool, in a URI.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use handoff::PodUid;
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

/// Before all else in the URI. The form is that of SPIFFE.
const PREFIX: &str = "spiffe://durableserver.io/";

/// Longest namespace, pool or uid. Kubernetes' longest names are of 253 characters.
const MAX_PART: usize = 253;

/// One pod of one pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodIdentity {
    /// Its namespace.
    pub namespace: String,
    /// Its pool.
    pub pool: String,
    /// Its uid.
    pub pod_uid: PodUid,
}

/// Why a certificate names no pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unnamed {
    /// It is no certificate.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// It names somebody else, or several.
    #[error("the certificate does not name one pod, and nothing else, as {PREFIX}ns/<namespace>/pool/<pool>/pod/<uid>")]
    NotAPod,
}

/// When a certificate (DER) ends.
pub fn ends(der: &[u8]) -> Result<SystemTime, Unnamed> {
    let (_, certificate) = parse_x509_certificate(der).map_err(|error| Unnamed::Unreadable(error.to_string()))?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok(UNIX_EPOCH + Duration::from_secs(seconds))
}

impl PodIdentity {
    /// Whom a certificate (DER) names. Whether it is to be believed is another question.
    pub fn of_certificate(der: &[u8]) -> Result<Self, Unnamed> {
        let unreadable = |error: &dyn fmt::Display| Unnamed::Unreadable(error.to_string());
        let (_, certificate) = parse_x509_certificate(der).map_err(|error| unreadable(&error))?;
        let names = certificate.subject_alternative_name().map_err(|error| unreadable(&error))?;
        match names.map(|names| names.value.general_names.as_slice()) {
            Some([GeneralName::URI(uri)]) => uri.parse(),
            _ => Err(Unnamed::NotAPod),
        }
    }

    /// Whether both are of the same pool of the same namespace.
    #[must_use]
    pub fn is_of_the_pool_of(&self, other: &Self) -> bool {
        self.namespace == other.namespace && self.pool == other.pool
    }
}

impl fmt::Display for PodIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}ns/{}/pool/{}/pod/{}", self.namespace, self.pool, self.pod_uid)
    }
}

impl FromStr for PodIdentity {
    type Err = Unnamed;

    fn from_str(uri: &str) -> Result<Self, Unnamed> {
        let path = uri.strip_prefix(PREFIX).ok_or(Unnamed::NotAPod)?;
        let parts: Vec<&str> = path.split('/').collect();
        match parts[..] {
            ["ns", namespace, "pool", pool, "pod", uid] if [namespace, pool, uid].into_iter().all(is_part) => {
                Ok(Self { namespace: namespace.to_owned(), pool: pool.to_owned(), pod_uid: PodUid(uid.to_owned()) })
            }
            _ => Err(Unnamed::NotAPod),
        }
    }
}

fn is_part(part: &str) -> bool {
    (1..=MAX_PART).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_reads_as_it_was_written() {
        let pod = PodIdentity { namespace: "ns".into(), pool: "rooms.v1".into(), pod_uid: PodUid("u-1".into()) };
        assert_eq!(pod.to_string(), "spiffe://durableserver.io/ns/ns/pool/rooms.v1/pod/u-1");
        assert_eq!(pod.to_string().parse(), Ok(pod));
    }

    #[test]
    fn no_part_of_a_name_can_be_taken_for_another() {
        for uri in [
            "",
            "spiffe://other/ns/a/pool/b/pod/c",
            "spiffe://durableserver.io/ns/a/pool/b/pod/",
            "spiffe://durableserver.io/ns/a/pool//pod/c",
            "spiffe://durableserver.io/ns/a/pool/b/pod/c/d",
            "spiffe://durableserver.io/ns/a/pool/b/pod/c%2f",
            "spiffe://durableserver.io/ns/a/pod/c/pool/b",
            "spiffe://durableserver.io/ns/a/pool/b/pod/c?x",
        ] {
            assert_eq!(uri.parse::<PodIdentity>(), Err(Unnamed::NotAPod), "{uri}");
        }
        let slash = PodIdentity { namespace: "a/pool/b".into(), pool: "p".into(), pod_uid: PodUid("u".into()) };
        assert_ne!(slash.to_string().parse(), Ok(slash));
        assert!(matches!(PodIdentity::of_certificate(b"no"), Err(Unnamed::Unreadable(_))));
    }
}
