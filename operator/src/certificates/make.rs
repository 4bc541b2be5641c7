//! Which certificates there are to be, given those that there are. Pure: time is an argument.
//!
//! A new authority is only announced at first, and the old one signs as long as what it signs ends before itself: pods
//! that learned their bundle at birth have the years in between to be replaced.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use super::Problem;

const DAY: Duration = Duration::from_hours(24);
/// An authority's life.
pub const AUTHORITY_LIFE: Duration = DAY.saturating_mul(3650);
/// A serving certificate's life.
pub const SERVING_LIFE: Duration = DAY.saturating_mul(90);
/// Other machines' clocks may be behind by so much.
const SKEW: Duration = Duration::from_hours(1);

const CERTIFICATE_END: &str = "-----END CERTIFICATE-----\n";
const KEY_END: &str = "-----END PRIVATE KEY-----\n";

/// All that is kept, as PEM. No `Debug`: half of it is secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Kept {
    /// Certificates of the authorities, oldest first: what others are to trust.
    pub bundle: String,
    /// Their keys, in the same order; none if someone else signs.
    pub authority_keys: String,
    /// The serving certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// One that signs, as PEM.
#[derive(Clone)]
pub(super) struct Authority {
    pub(super) certificate: String,
    pub(super) key: String,
    life: Life,
}

/// From when until when, in seconds since 1970, and for which names.
#[derive(Clone)]
struct Life {
    begin: i64,
    end: i64,
    names: Vec<String>,
}

impl Life {
    /// Two thirds are over, or all of it.
    fn is_due(&self, now: i64) -> bool {
        now >= self.end - (self.end - self.begin) / 3
    }
}

/// What is to be kept instead of what there is; `None` if that is good.
pub fn renew(kept: Option<&Kept>, names: &[String], now: SystemTime) -> Result<Option<Kept>, Problem> {
    let at = seconds(now);
    let mut authorities = kept.map(authorities).transpose()?.unwrap_or_default();
    let before = authorities.len();
    authorities.retain(|authority| at < authority.life.end);
    let mut changed = authorities.len() != before;
    if authorities.last().is_none_or(|newest| newest.life.is_due(at)) {
        authorities.push(authority(now)?);
        changed = true;
    }
    let serving = match kept {
        Some(kept) if is_good(kept, names, at)? => (kept.certificate.clone(), kept.key.clone()),
        _ => {
            changed = true;
            serving(signer(&authorities, at, SERVING_LIFE)?, names, now)?
        }
    };
    Ok(changed.then(|| Kept {
        bundle: authorities.iter().map(|authority| authority.certificate.as_str()).collect(),
        authority_keys: authorities.iter().map(|authority| authority.key.as_str()).collect(),
        certificate: serving.0,
        key: serving.1,
    }))
}

/// The oldest that outlives what it signs.
fn signer(authorities: &[Authority], at: i64, life: Duration) -> Result<&Authority, Problem> {
    let end = at.saturating_add_unsigned(life.as_secs());
    let lasting = authorities.iter().find(|authority| authority.life.end >= end);
    lasting.or(authorities.last()).ok_or_else(|| Problem::Crypto("no authority".into()))
}

/// Who signs a certificate of this life.
pub(super) fn authority_for(kept: &Kept, now: SystemTime, life: Duration) -> Result<Authority, Problem> {
    let authorities = authorities(kept)?;
    signer(&authorities, seconds(now), life).cloned()
}

fn is_good(kept: &Kept, names: &[String], at: i64) -> Result<bool, Problem> {
    let life = life(&kept.certificate)?;
    Ok(!life.is_due(at) && names.iter().all(|name| life.names.contains(name)))
}

fn authorities(kept: &Kept) -> Result<Vec<Authority>, Problem> {
    let certificates = pieces(&kept.bundle, CERTIFICATE_END);
    let keys = pieces(&kept.authority_keys, KEY_END);
    if certificates.len() != keys.len() {
        return Err(Problem::Unreadable(format!("{} authorities have {} keys", certificates.len(), keys.len())));
    }
    let pairs = certificates.into_iter().zip(keys);
    pairs.map(|(certificate, key)| Ok(Authority { life: life(&certificate)?, certificate, key })).collect()
}

fn pieces(text: &str, end: &str) -> Vec<String> {
    text.split_inclusive(end).filter(|piece| !piece.trim().is_empty()).map(str::to_owned).collect()
}

fn life(pem: &str) -> Result<Life, Problem> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| Problem::Unreadable(error.to_string()))?;
    let (_, parsed) = parse_x509_certificate(&der).map_err(|error| Problem::Unreadable(error.to_string()))?;
    let names = parsed.subject_alternative_name().map_err(|error| Problem::Unreadable(error.to_string()))?;
    let names = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    let validity = parsed.validity();
    Ok(Life { begin: validity.not_before.timestamp(), end: validity.not_after.timestamp(), names: names.collect() })
}

fn authority(now: SystemTime) -> Result<Authority, Problem> {
    let key = KeyPair::generate()?;
    let mut params = lasting(CertificateParams::default(), "durable-server authority", now, AUTHORITY_LIFE)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?.pem();
    Ok(Authority { life: life(&certificate)?, certificate, key: key.serialize_pem() })
}

fn serving(authority: &Authority, names: &[String], now: SystemTime) -> Result<(String, String), Problem> {
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, KeyPair::from_pem(&authority.key)?)?;
    let key = KeyPair::generate()?;
    let mut params = lasting(CertificateParams::new(names)?, "durable-server operator", now, SERVING_LIFE)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
}

pub(super) fn lasting(
    mut params: CertificateParams,
    name: &str,
    now: SystemTime,
    life: Duration,
) -> Result<CertificateParams, Problem> {
    let out_of_range = || Problem::Crypto("this machine's clock is far off".into());
    params.not_before = now.checked_sub(SKEW).ok_or_else(out_of_range)?.into();
    params.not_after = now.checked_add(life).ok_or_else(out_of_range)?.into();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
