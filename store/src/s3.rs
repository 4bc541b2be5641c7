//! A store that speaks S3.

use std::{
    error::Error,
    fmt,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient,
        StalledStreamProtectionConfig, http::HttpResponse, retry::RetryConfig,
    },
    error::{ProvideErrorMetadata, SdkError},
    primitives::ByteStream,
    types::Object,
};
use aws_smithy_http_client::{
    Builder,
    tls::{self, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use bytes::{Bytes, BytesMut};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::time::timeout;

use crate::objects::{Created, Listed, Objects, Part, StoreError};

/// For a small create, from the first byte sent to the answer. What is slower than this is better tried again.
const CREATE: Duration = Duration::from_secs(3);
/// For everything else, tries within the SDK included.
const OTHER: Duration = Duration::from_secs(10);
/// Every so many bytes a call may take a second longer.
const BYTES_PER_SECOND: u64 = 4 << 20;
const READ_ATTEMPTS: u32 = 3;
/// What S3 lists at most at a time.
const MAX_PAGE: usize = 1000;

/// Where a bucket is and how to speak to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Its name.
    pub bucket: String,
    /// Its region; empty for servers that have none.
    pub region: String,
    /// The server's URL; `None` for AWS.
    pub endpoint: Option<String>,
    /// Whether the bucket goes into the path rather than the host name. Most servers other than AWS need it.
    pub force_path_style: bool,
    /// Certificate authorities in PEM to trust instead of the system's.
    pub ca_bundle: Option<String>,
}

/// A bucket on an S3 server.
#[derive(Clone)]
pub struct S3 {
    /// Sends once: a second try inside the SDK would meet the first one's object and report it as another's.
    once: Client,
    retrying: Client,
    bucket: String,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

impl S3 {
    /// With the credentials that the environment holds in `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, if any,
    /// `AWS_SESSION_TOKEN`. Does not connect yet. Every error is one of settings.
    pub fn from_env(config: &Config) -> Result<Self, StoreError> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let required = |name: &str| {
            let missing = format!("{name} is not set: name a Secret that has it in spec.store.s3.credentialsSecretRef");
            variable(name).ok_or(StoreError::Config(missing))
        };
        let (id, secret) = (required("AWS_ACCESS_KEY_ID")?, required("AWS_SECRET_ACCESS_KEY")?);
        let token = variable("AWS_SESSION_TOKEN");
        Self::new(config, Credentials::new(id, secret, token, None, "environment"))
    }

    /// With these credentials. Does not connect yet. Every error is one of settings.
    pub fn new(config: &Config, credentials: Credentials) -> Result<Self, StoreError> {
        if config.bucket.is_empty() {
            return Err(StoreError::Config("no bucket is named: set spec.store.s3.bucket".into()));
        }
        let region = if config.region.is_empty() { "us-east-1" } else { &config.region };
        let mut builder = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .http_client(http_client(config)?)
            .credentials_provider(credentials)
            .region(Region::new(region.to_owned()))
            .force_path_style(config.force_path_style)
            // Many servers know neither checksums in trailers nor the ones AWS adds; records have their own.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        builder.set_endpoint_url(config.endpoint.clone());
        let once = builder.clone().retry_config(RetryConfig::disabled()).build();
        let retrying = builder.retry_config(RetryConfig::standard().with_max_attempts(READ_ATTEMPTS)).build();
        let bucket = config.bucket.clone();
        Ok(Self { once: Client::from_conf(once), retrying: Client::from_conf(retrying), bucket })
    }

    fn error<E>(&self, error: &SdkError<E, HttpResponse>) -> StoreError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        match error {
            SdkError::ServiceError(service) => {
                let (code, message) = (service.err().code().unwrap_or(""), service.err().message().unwrap_or(""));
                refusal(&self.bucket, service.raw().status().as_u16(), code, message)
            }
            SdkError::ConstructionFailure(_) => StoreError::Config(chain(error)),
            _ => StoreError::Unknown(chain(error)),
        }
    }

    async fn read(&self, key: &str, part: Part) -> Result<Option<Bytes>, StoreError> {
        let range = match part {
            Part::Start(first) => Some(format!("bytes=0-{}", first.saturating_sub(1))),
            Part::Whole { .. } => None,
        };
        let sent = self.retrying.get_object().bucket(&self.bucket).key(key).set_range(range).send().await;
        let answer = match sent {
            Ok(answer) => answer,
            Err(error) => {
                return match error.code() {
                    Some("NoSuchKey") => Ok(None),
                    // An empty object has no first byte.
                    Some("InvalidRange") => Ok(Some(Bytes::new())),
                    _ => Err(self.error(&error)),
                };
            }
        };
        let length = answer.content_length().and_then(|length| u64::try_from(length).ok()).unwrap_or(0);
        let (mut body, mut bytes) = (answer.body, BytesMut::new());
        let max = limit(part);
        if length <= max {
            bytes.reserve(usize::try_from(length).unwrap_or(0));
        } else if let Part::Whole { .. } = part {
            return Err(StoreError::too_large(key, length, max));
        }
        while let Some(chunk) = body.try_next().await.map_err(|error| StoreError::Unknown(chain(&error)))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > max {
                match part {
                    Part::Whole { .. } => return Err(StoreError::too_large(key, bytes.len() as u64, max)),
                    // A server that does not know ranges sends all.
                    Part::Start(_) => bytes.truncate(usize::try_from(max).unwrap_or(usize::MAX)),
                }
                break;
            }
        }
        Ok(Some(bytes.freeze()))
    }

    async fn keys(&self, prefix: &str, start_after: &str, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let limit = limit.min(MAX_PAGE);
        let mut keys = Vec::new();
        let mut token = None;
        // A server may give fewer than asked and say that there are more.
        while keys.len() < limit {
            let request = self.retrying.list_objects_v2().bucket(&self.bucket).prefix(prefix);
            let request = request.max_keys(i32::try_from(limit - keys.len()).unwrap_or(1000));
            let request = request.set_start_after((!start_after.is_empty()).then(|| start_after.to_owned()));
            let page = request.set_continuation_token(token).send().await.map_err(|error| self.error(&error))?;
            token = page.next_continuation_token().map(str::to_owned);
            let is_last = token.is_none() || page.is_truncated() != Some(true);
            keys.extend(page.contents.unwrap_or_default().into_iter().filter_map(listed));
            if is_last {
                break;
            }
        }
        keys.truncate(limit);
        Ok(keys)
    }
}

#[async_trait]
impl Objects for S3 {
    async fn create(&self, key: &str, body: Bytes) -> Result<Created, StoreError> {
        let allowed = allow(CREATE, body.len() as u64);
        let request = self.once.put_object().bucket(&self.bucket).key(key).if_none_match("*");
        let sent = Box::pin(request.body(ByteStream::from(body)).send());
        let answer = async {
            match sent.await {
                Ok(_) => Ok(Created::Created),
                Err(error) if status(&error) == Some(412) => Ok(Created::Exists),
                Err(error) => Err(self.error(&error)),
            }
        };
        bounded(allowed, answer).await
    }

    async fn get(&self, key: &str, part: Part) -> Result<Option<Bytes>, StoreError> {
        bounded(allow(OTHER, limit(part)), self.read(key, part)).await
    }

    async fn list(&self, prefix: &str, start_after: &str, limit: usize) -> Result<Vec<Listed>, StoreError> {
        bounded(OTHER, self.keys(prefix, start_after, limit)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let request = self.retrying.delete_object().bucket(&self.bucket).key(key);
        bounded(OTHER, async { request.send().await.map(drop).map_err(|error| self.error(&error)) }).await
    }
}

fn listed(object: Object) -> Option<Listed> {
    let modified = object.last_modified.and_then(|time| SystemTime::try_from(time).ok());
    Some(Listed { key: object.key?, modified })
}

fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error.raw_response().map(|raw| raw.status().as_u16())
}

fn limit(part: Part) -> u64 {
    match part {
        Part::Start(max) | Part::Whole { max } => max,
    }
}

fn allow(base: Duration, bytes: u64) -> Duration {
    base + Duration::from_secs(bytes / BYTES_PER_SECOND)
}

async fn bounded<T>(allowed: Duration, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let unanswered = |_| StoreError::Unknown(format!("no answer within {} s", allowed.as_secs()));
    timeout(allowed, call).await.map_err(unanswered)?
}

/// What a server's refusal means, and what to do about it.
fn refusal(bucket: &str, status: u16, code: &str, message: &str) -> StoreError {
    let said = format!("{code} {message} (HTTP {status})");
    match (code, status) {
        ("NoSuchBucket", _) => StoreError::Config(format!(
            "there is no bucket {bucket:?}: create it or correct spec.store.s3.bucket and endpoint; {said}"
        )),
        ("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException", _)
        | (_, 301 | 307) => StoreError::Config(format!(
            "bucket {bucket:?} is served elsewhere: correct spec.store.s3.region and endpoint; {said}"
        )),
        ("RequestTimeTooSkewed", _) => {
            StoreError::Config(format!("this node's clock and the store's differ: set them right; {said}"))
        }
        ("InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken", _) | (_, 401) => {
            StoreError::Denied(format!("correct the keys in the Secret of spec.store.s3.credentialsSecretRef; {said}"))
        }
        ("AccessDenied", _) | (_, 403) => StoreError::Denied(format!(
            "allow these keys s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket on bucket {bucket:?}; {said}"
        )),
        ("SlowDown" | "ServiceUnavailable" | "TooManyRequests" | "RequestLimitExceeded", _) | (_, 429 | 503) => {
            StoreError::Throttled(said)
        }
        // Two creates of one key at once: which of them won is not known yet.
        ("ConditionalRequestConflict" | "OperationAborted", _) | (_, 408 | 409 | 500 | 502 | 504) => {
            StoreError::Unknown(said)
        }
        ("RequestTimeout", _) => StoreError::Unknown(said),
        _ => StoreError::Other(said),
    }
}

fn http_client(config: &Config) -> Result<SharedHttpClient, StoreError> {
    let endpoint = config.endpoint.as_deref().unwrap_or("https://");
    let is_plain = endpoint.starts_with("http://");
    if !is_plain && !endpoint.starts_with("https://") {
        let reason = format!("endpoint {endpoint:?} is no URL: begin spec.store.s3.endpoint with http:// or https://");
        return Err(StoreError::Config(reason));
    }
    let trusted = match &config.ca_bundle {
        Some(pem) => {
            check_bundle(pem)?;
            TrustStore::empty().with_pem_certificate(pem.as_bytes())
        }
        // Nothing needs to be trusted, and an image may have no authorities to load.
        None if is_plain => TrustStore::empty(),
        None => TrustStore::default(),
    };
    let context = TlsContext::builder().with_trust_store(trusted).build();
    let context = context.map_err(|error| StoreError::Config(format!("spec.store.s3.caBundle: {error}")))?;
    // Two crypto providers in one process make others' automatic choice fail, so ours is named.
    let provider = tls::Provider::Rustls(CryptoMode::Ring);
    Ok(Builder::new().tls_provider(provider).tls_context(context).build_https())
}

/// The SDK panics on a bundle that it cannot read, when it first connects.
fn check_bundle(pem: &str) -> Result<(), StoreError> {
    let wrong =
        |reason: String| StoreError::Config(format!("spec.store.s3.caBundle is no list of PEM certificates: {reason}"));
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| wrong(error.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong("there is none in it".into()));
    }
    let mut roots = RootCertStore::empty();
    certificates.into_iter().try_for_each(|der| roots.add(der)).map_err(|error| wrong(error.to_string()))
}

/// An error with its causes: the SDK's own text is only "dispatch failure".
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_to_do() {
        assert!(matches!(refusal("b", 404, "NoSuchBucket", ""), StoreError::Config(_)));
        assert!(matches!(refusal("b", 301, "", ""), StoreError::Config(_)));
        assert!(matches!(refusal("b", 403, "RequestTimeTooSkewed", ""), StoreError::Config(_)));
        assert!(matches!(refusal("b", 403, "SignatureDoesNotMatch", ""), StoreError::Denied(_)));
        assert!(matches!(refusal("b", 403, "", ""), StoreError::Denied(_)));
        assert!(matches!(refusal("b", 503, "SlowDown", ""), StoreError::Throttled(_)));
        assert!(matches!(refusal("b", 409, "ConditionalRequestConflict", ""), StoreError::Unknown(_)));
        assert!(matches!(refusal("b", 500, "InternalError", ""), StoreError::Unknown(_)));
        assert!(matches!(refusal("b", 404, "", ""), StoreError::Other(_)));
    }

    #[test]
    fn wrong_settings_are_refused_before_anything_connects() {
        let good = Config { bucket: "b".into(), endpoint: Some("http://127.0.0.1:1".into()), ..Config::default() };
        let new = |config: &Config| S3::new(config, Credentials::new("id", "secret", None, None, "test"));
        assert!(new(&good).is_ok());
        for bad in [
            Config { bucket: String::new(), ..good.clone() },
            Config { endpoint: Some("127.0.0.1:1".into()), ..good.clone() },
            Config { ca_bundle: Some("no certificate".into()), ..good.clone() },
            Config { ca_bundle: Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into()), ..good },
        ] {
            assert!(matches!(new(&bad), Err(StoreError::Config(_))), "{bad:?}");
        }
    }
}
