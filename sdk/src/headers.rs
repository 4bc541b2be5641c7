//! The contract's headers, read and written.

use std::str::FromStr;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use serde_json::Value;

use crate::{
    answer::Refusal,
    server::{LoadError, ServerName},
};

pub(crate) const SERVER: &str = "durable-server";
pub(crate) const UID: &str = "durable-uid";
pub(crate) const TYPE: &str = "durable-type";
pub(crate) const EPOCH: &str = "durable-epoch";
pub(crate) const ATTEMPT: &str = "durable-attempt";
pub(crate) const CONFIG: &str = "durable-config";
pub(crate) const MODE: &str = "durable-mode";
pub(crate) const STATE: &str = "durable-state";
pub(crate) const STATE_VERSION: &str = "durable-state-version";
pub(crate) const INSTANCE: &str = "durable-instance";
pub(crate) const REVISION: &str = "durable-revision";
pub(crate) const CHECKSUM: &str = "durable-checksum";
pub(crate) const GENERATION: &str = "durable-generation";
pub(crate) const DEADLINE: &str = "durable-deadline";
pub(crate) const NOT_HERE: &str = "durable-not-here";

/// The place of a control call in the order of all control calls for one server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order {
    pub epoch: u64,
    pub attempt: u64,
}

impl Order {
    pub(crate) fn read(headers: &HeaderMap) -> Result<Self, Refusal> {
        Ok(Self { epoch: number(headers, EPOCH)?, attempt: number(headers, ATTEMPT)? })
    }
}

/// Names one sequence of state bytes without bearing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub instance: u64,
    pub revision: u64,
    pub checksum: u32,
}

impl Mark {
    pub(crate) fn read(headers: &HeaderMap) -> Result<Self, Refusal> {
        Ok(Self {
            instance: number(headers, INSTANCE)?,
            revision: number(headers, REVISION)?,
            checksum: number(headers, CHECKSUM)?,
        })
    }

    pub(crate) fn write(self, headers: &mut HeaderMap) {
        headers.insert(INSTANCE, HeaderValue::from(self.instance));
        headers.insert(REVISION, HeaderValue::from(self.revision));
        headers.insert(CHECKSUM, HeaderValue::from(self.checksum));
    }
}

/// The state that the caller has already, as far as `snapshot` and `freeze` compare it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Since {
    pub instance: u64,
    pub revision: u64,
}

impl Since {
    pub(crate) fn read(headers: &HeaderMap) -> Result<Option<Self>, Refusal> {
        if !headers.contains_key(INSTANCE) {
            return Ok(None);
        }
        Ok(Some(Self { instance: number(headers, INSTANCE)?, revision: number(headers, REVISION)? }))
    }
}

/// A state as a control call brings it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    Full { version: u32, body: Bytes, checksum: u32 },
    None,
    Unchanged(Mark),
}

impl Given {
    pub(crate) fn read(headers: &HeaderMap, body: Bytes) -> Result<Self, Refusal> {
        match text(headers, STATE)? {
            "full" => {
                let checksum = crc32fast::hash(&body);
                if headers.contains_key(CHECKSUM) && number::<u32>(headers, CHECKSUM)? != checksum {
                    return Err(LoadError::new("the state's bytes do not have the checksum that came with them").into());
                }
                Ok(Self::Full { version: number(headers, STATE_VERSION)?, body, checksum })
            }
            "none" => Ok(Self::None),
            "unchanged" => Ok(Self::Unchanged(Mark::read(headers)?)),
            other => Err(Refusal::bad_request(format!("{STATE} must be full, none or unchanged, not {other:?}"))),
        }
    }
}

pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Refusal> {
    let value = headers.get(name).ok_or_else(|| Refusal::bad_request(format!("header {name} is missing")))?;
    value.to_str().map_err(|_| Refusal::bad_request(format!("header {name} is not plain text")))
}

pub(crate) fn number<T: FromStr>(headers: &HeaderMap, name: &str) -> Result<T, Refusal> {
    let value = text(headers, name)?;
    value.parse().map_err(|_| Refusal::bad_request(format!("header {name} must be a decimal number, not {value:?}")))
}

pub(crate) fn server_name(headers: &HeaderMap, uid: &str) -> Result<ServerName, Refusal> {
    let value = text(headers, SERVER)?;
    let (namespace, name) = value
        .split_once('/')
        .ok_or_else(|| Refusal::bad_request(format!("header {SERVER} must be namespace/name, not {value:?}")))?;
    Ok(ServerName { namespace: namespace.into(), name: name.into(), uid: uid.into() })
}

pub(crate) fn config(headers: &HeaderMap) -> Result<Option<Value>, Refusal> {
    let Some(value) = headers.get(CONFIG) else { return Ok(None) };
    let bytes = STANDARD
        .decode(value.as_bytes())
        .map_err(|error| Refusal::bad_request(format!("header {CONFIG} is not base64: {error}")))?;
    let config = serde_json::from_slice(&bytes)
        .map_err(|error| LoadError::new(format!("the server's config is not JSON: {error}")))?;
    Ok(Some(config))
}
