//! Where certificates are kept: a Secret that all replicas read, and write only if nobody else did.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use tokio::time::timeout;

use super::{Problem, make::Kept};

/// One call to the API server.
pub(super) const CALL: Duration = Duration::from_secs(10);

/// The names that cert-manager uses too, and one of our own.
const BUNDLE: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const AUTHORITY_KEYS: &str = "ca.key";

/// What a write came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is there.
    Done,
    /// Someone else wrote before: read again.
    Lost,
}

/// One Secret.
#[async_trait]
pub trait Secrets: Send + Sync + 'static {
    /// What is kept, and its version; `None` if there is no such Secret.
    async fn read(&self) -> Result<Option<(String, Kept)>, Problem>;
    /// Makes it, unless it is there.
    async fn create(&self, kept: &Kept) -> Result<Written, Problem>;
    /// Changes it, unless it is not of this version any more.
    async fn replace(&self, version: &str, kept: &Kept) -> Result<Written, Problem>;
}

/// A Secret of Kubernetes.
pub struct KubeSecret {
    api: Api<Secret>,
    name: String,
}

impl KubeSecret {
    /// The Secret of this name.
    #[must_use]
    pub fn new(api: Api<Secret>, name: String) -> Self {
        Self { api, name }
    }
}

#[async_trait]
impl Secrets for KubeSecret {
    async fn read(&self) -> Result<Option<(String, Kept)>, Problem> {
        let found = timeout(CALL, self.api.get_opt(&self.name)).await.map_err(|_| Problem::Late)??;
        let Some(secret) = found else { return Ok(None) };
        let version = secret.metadata.resource_version.unwrap_or_default();
        Ok(Some((version, kept(&secret.data.unwrap_or_default())?)))
    }

    async fn create(&self, kept: &Kept) -> Result<Written, Problem> {
        let secret = secret(ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() }, kept);
        written(timeout(CALL, self.api.create(&PostParams::default(), &secret)).await.map_err(|_| Problem::Late)?)
    }

    async fn replace(&self, version: &str, kept: &Kept) -> Result<Written, Problem> {
        // With a version in it, a patch is refused as a conflict if the object has another.
        let secret = secret(ObjectMeta { resource_version: Some(version.into()), ..ObjectMeta::default() }, kept);
        let (params, patch) = (PatchParams::default(), Patch::Merge(&secret));
        let patched = timeout(CALL, self.api.patch(&self.name, &params, &patch)).await;
        written(patched.map_err(|_| Problem::Late)?)
    }
}

fn written(result: kube::Result<Secret>) -> Result<Written, Problem> {
    match result {
        Ok(_) => Ok(Written::Done),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Written::Lost),
        Err(error) => Err(error.into()),
    }
}

fn secret(metadata: ObjectMeta, kept: &Kept) -> Secret {
    let data = [
        (BUNDLE, &kept.bundle),
        (AUTHORITY_KEYS, &kept.authority_keys),
        (CERTIFICATE, &kept.certificate),
        (KEY, &kept.key),
    ];
    let data = data.map(|(name, text)| (name.to_owned(), ByteString(text.clone().into_bytes())));
    Secret { metadata, data: Some(data.into()), ..Secret::default() }
}

fn kept(data: &BTreeMap<String, ByteString>) -> Result<Kept, Problem> {
    let text = |name: &str| {
        let bytes = data.get(name).ok_or_else(|| Problem::Unreadable(format!("it has no {name}")))?;
        String::from_utf8(bytes.0.clone()).map_err(|_| Problem::Unreadable(format!("its {name} is not text")))
    };
    Ok(Kept {
        bundle: text(BUNDLE)?,
        certificate: text(CERTIFICATE)?,
        key: text(KEY)?,
        // Those that cert-manager made have none.
        authority_keys: if data.contains_key(AUTHORITY_KEYS) { text(AUTHORITY_KEYS)? } else { String::new() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        let all = Kept { bundle: "b".into(), authority_keys: "a".into(), certificate: "c".into(), key: "k".into() };
        let data = secret(ObjectMeta::default(), &all).data.unwrap();
        assert!(kept(&data).unwrap() == all);
    }

    #[test]
    fn a_missing_part_is_named() {
        let data = BTreeMap::from([(BUNDLE.to_owned(), ByteString(b"b".to_vec()))]);
        let problem = kept(&data).err().unwrap().to_string();
        assert!(problem.contains("tls.crt"), "{problem}");
    }
}
