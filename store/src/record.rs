//! A record as bytes: a fixed frame, a JSON header, and the state, compressed. Whatever does not decode to exactly
//! what was written is an error, never an absent record.
//!
//! ```text
//!  0  magic "DSRV"     4  format, u16     6  header length, u32     10  CRC-32 of the header     14  header     then the body
//! ```
//! Numbers are big-endian. A reader takes every header field it knows and ignores the others, so that a newer minor
//! version may add some; the format number changes only when an older reader would go wrong.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use handoff::{
    ids::LAST,
    log::{Header, Kind},
};
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 4] = b"DSRV";
const FORMAT: u16 = 1;
const FRAME: usize = 14;
/// The longest header accepted, in bytes. Ours are below 1 KiB; the rest is room for later versions.
pub const MAX_HEADER: usize = 64 * 1024;
/// Reading this much of a record is enough to decode its header.
pub const HEAD: u64 = (FRAME + MAX_HEADER) as u64;
/// Fast, and within a few per cent of the higher levels on the small JSON-like states this is for.
const LEVEL: i32 = 1;

/// Why bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes were damaged, cut short, or never were a record.
    #[error("not an intact record: {0}")]
    Corrupt(String),
    /// Written in a format that came later.
    #[error("the record has format {found} and this version reads up to {FORMAT}: update this agent")]
    Format {
        /// The record's format number.
        found: u16,
    },
    /// The state is larger than allowed.
    #[error("the state has {bytes} bytes and {max} are allowed: raise spec.sync.maxStateBytes")]
    TooLarge {
        /// Of the uncompressed state.
        bytes: u64,
        /// As configured.
        max: u64,
    },
}

/// A state, compressed once for every sequence that it may have to be tried at.
#[derive(Clone, Debug)]
pub struct Packed {
    info: Info,
    stored: Bytes,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Info {
    /// Bytes as stored.
    stored: u64,
    /// Bytes of the state.
    length: u64,
    /// CRC-32 of the state.
    checksum: u32,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    header: Header,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<Info>,
}

/// Compresses a state. Costs about a millisecond per 300 KiB.
pub fn pack(state: &[u8], max: u64) -> Result<Packed, RecordError> {
    let length = state.len() as u64;
    if length > max {
        return Err(RecordError::TooLarge { bytes: length, max });
    }
    let stored = zstd::bulk::compress(state, LEVEL).map_err(|error| corrupt("state does not compress", &error))?;
    let info = Info { stored: stored.len() as u64, length, checksum: crc32fast::hash(state) };
    Ok(Packed { info, stored: stored.into() })
}

/// The most bytes that a record with a state of `max` bytes can have.
#[must_use]
pub fn max_record(max: u64) -> u64 {
    // zstd's own bound: incompressible input grows by 1/256 and a constant.
    HEAD + max + max / 256 + 1024
}

/// The bytes of a record. Refuses what [`decode`] would refuse.
pub fn encode(header: &Header, state: Option<&Packed>) -> Result<Bytes, RecordError> {
    let stored = Stored { header: header.clone(), body: state.map(|packed| packed.info) };
    check(&stored)?;
    let json =
        serde_json::to_vec(&stored).map_err(|error| corrupt("header does not encode", &io::Error::from(error)))?;
    let length = u32::try_from(json.len()).ok().filter(|_| json.len() <= MAX_HEADER);
    let length = length.ok_or_else(|| RecordError::Corrupt(format!("header of {} bytes is too long", json.len())))?;
    let body = state.map_or_else(Bytes::new, |packed| packed.stored.clone());
    let mut bytes = BytesMut::with_capacity(FRAME + json.len() + body.len());
    bytes.put_slice(MAGIC);
    bytes.put_u16(FORMAT);
    bytes.put_u32(length);
    bytes.put_u32(crc32fast::hash(&json));
    bytes.put_slice(&json);
    bytes.put_slice(&body);
    Ok(bytes.freeze())
}

/// The header, from a record's first [`HEAD`] bytes or more. The body is not looked at.
pub fn decode_header(bytes: &[u8]) -> Result<Header, RecordError> {
    split(bytes).map(|(stored, _)| stored.header)
}

/// The header, and how many bytes of state the record bears, if it does; from its first [`HEAD`] bytes or more.
pub fn describe(bytes: &[u8]) -> Result<(Header, Option<u64>), RecordError> {
    split(bytes).map(|(stored, _)| (stored.header, stored.body.map(|info| info.length)))
}

/// The header, and the state if the record bears one; `max` is the largest state accepted.
pub fn decode(bytes: &[u8], max: u64) -> Result<(Header, Option<Bytes>), RecordError> {
    let (Stored { header, body }, rest) = split(bytes)?;
    let Some(info) = body else {
        if !rest.is_empty() {
            return Err(RecordError::Corrupt(format!("{} bytes follow a record without a state", rest.len())));
        }
        return Ok((header, None));
    };
    if rest.len() as u64 != info.stored {
        return Err(RecordError::Corrupt(format!("{} bytes of {} are there", rest.len(), info.stored)));
    }
    let capacity = usize::try_from(info.length).ok().filter(|_| info.length <= max);
    let capacity = capacity.ok_or(RecordError::TooLarge { bytes: info.length, max })?;
    let state = zstd::bulk::decompress(rest, capacity).map_err(|error| corrupt("state does not decompress", &error))?;
    if state.len() != capacity || crc32fast::hash(&state) != info.checksum {
        return Err(RecordError::Corrupt("the state's checksum does not match".into()));
    }
    Ok((header, Some(state.into())))
}

fn split(bytes: &[u8]) -> Result<(Stored, &[u8]), RecordError> {
    let short = || RecordError::Corrupt(format!("cut short at {} bytes", bytes.len()));
    let (magic, rest) = bytes.split_first_chunk::<4>().ok_or_else(short)?;
    let (format, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let (checksum, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    if magic != MAGIC {
        return Err(RecordError::Corrupt("it does not begin like one".into()));
    }
    let found = u16::from_be_bytes(*format);
    if found != FORMAT {
        return Err(RecordError::Format { found });
    }
    let length = u32::from_be_bytes(*length) as usize;
    if length > MAX_HEADER {
        return Err(RecordError::Corrupt(format!("a header of {length} bytes is too long")));
    }
    let (json, body) = rest.split_at_checked(length).ok_or_else(short)?;
    if crc32fast::hash(json) != u32::from_be_bytes(*checksum) {
        return Err(RecordError::Corrupt("the header's checksum does not match".into()));
    }
    let stored: Stored =
        serde_json::from_slice(json).map_err(|error| RecordError::Corrupt(format!("the header: {error}")))?;
    check(&stored)?;
    Ok((stored, body))
}

/// What every other part relies on: a record bears a state exactly if it says so, and a Snapshot always does.
fn check(stored: &Stored) -> Result<(), RecordError> {
    let Header { sequence, epoch, state_at, kind, .. } = &stored.header;
    if sequence.0 > LAST || epoch.0 > LAST {
        return Err(RecordError::Corrupt(format!("record {sequence} of epoch {epoch} is beyond all counting")));
    }
    let bears = stored.header.bears_state();
    if bears != stored.body.is_some() || state_at > sequence || (matches!(kind, Kind::Snapshot) && !bears) {
        return Err(RecordError::Corrupt(format!("record {sequence} contradicts itself about its state")));
    }
    Ok(())
}

fn corrupt(what: &str, error: &io::Error) -> RecordError {
    RecordError::Corrupt(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use handoff::{
        Epoch, Generation, HandoffId, PodUid, Sequence,
        log::{Grantee, Writer},
    };
    use proptest::{prelude::*, sample::Index};

    use super::*;

    const MAX: u64 = 1 << 20;

    fn header(kind: Kind, sequence: u64, state_at: u64) -> Header {
        let (sequence, state_at) = (Sequence(sequence), Sequence(state_at));
        Header {
            sequence,
            epoch: Epoch(3),
            kind,
            writer: Writer::default(),
            nonce: u64::MAX,
            state_at,
            state_version: 2,
        }
    }

    fn sample() -> Bytes {
        encode(&header(Kind::Snapshot, 9, 9), Some(&pack(b"a state", MAX).unwrap())).unwrap()
    }

    /// A record as some other version might have written it.
    fn framed(format: u16, json: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(format.to_be_bytes());
        bytes.extend(u32::try_from(json.len()).unwrap().to_be_bytes());
        bytes.extend(crc32fast::hash(json.as_bytes()).to_be_bytes());
        bytes.extend(json.as_bytes());
        bytes.extend(body);
        bytes
    }

    fn json(bytes: &[u8]) -> String {
        let length = u32::from_be_bytes(bytes[6..10].try_into().unwrap()) as usize;
        String::from_utf8(bytes[FRAME..FRAME + length].to_vec()).unwrap()
    }

    #[test]
    fn fields_of_a_newer_minor_version_are_ignored() {
        let newer = json(&sample()).replacen('{', r#"{"colour":{"of":["the","bikeshed"]},"#, 1);
        let body = pack(b"a state", MAX).unwrap().stored;
        let (header, state) = decode(&framed(FORMAT, &newer, &body), MAX).unwrap();
        assert_eq!((header.sequence, state.unwrap()), (Sequence(9), Bytes::from_static(b"a state")));
    }

    #[test]
    fn a_tombstone_without_a_word_on_its_state_keeps_it() {
        let tombstone = encode(&header(Kind::Tombstone { delete: true }, 9, 8), None).unwrap();
        assert_eq!(decode_header(&tombstone).unwrap().kind, Kind::Tombstone { delete: true });
        let older = json(&tombstone).replace(r#","delete":true"#, "");
        let read = decode_header(&framed(FORMAT, &older, b"")).unwrap();
        assert_eq!(read.kind, Kind::Tombstone { delete: false }, "{older}");
    }

    #[test]
    fn a_newer_format_is_named() {
        assert_eq!(decode(&framed(2, "{}", b""), MAX), Err(RecordError::Format { found: 2 }));
    }

    #[test]
    fn a_state_past_the_limit_is_refused_before_it_is_unpacked() {
        assert_eq!(decode(&sample(), 6), Err(RecordError::TooLarge { bytes: 7, max: 6 }));
        assert!(matches!(pack(b"a state", 6), Err(RecordError::TooLarge { .. })));
    }

    #[test]
    fn a_record_that_contradicts_itself_is_refused() {
        let packed = pack(b"", MAX).unwrap();
        assert!(encode(&header(Kind::Snapshot, 9, 8), None).is_err());
        assert!(encode(&header(Kind::Claim, 9, 9), None).is_err());
        assert!(encode(&header(Kind::Claim, 9, 10), None).is_err());
        assert!(encode(&header(Kind::Claim, 9, 8), Some(&packed)).is_err());
        let pointing = encode(&header(Kind::Claim, 9, 8), None).unwrap();
        let mut followed = pointing.to_vec();
        followed.push(0);
        assert!(decode(&followed, MAX).is_err());
    }

    #[test]
    fn numbers_that_nobody_counted_to_are_refused() {
        assert!(encode(&header(Kind::Claim, LAST, 8), None).is_ok());
        for (sequence, epoch) in [(LAST + 1, 3), (u64::MAX, 3), (9, LAST + 1), (9, u64::MAX)] {
            let header = Header { epoch: Epoch(epoch), ..header(Kind::Claim, sequence, 8) };
            assert!(matches!(encode(&header, None), Err(RecordError::Corrupt(_))), "{sequence} {epoch}");
        }
    }

    #[test]
    fn a_state_that_unpacks_to_more_than_it_says_is_refused_and_takes_no_room() {
        let bomb = pack(&vec![0; 64 << 20], 1 << 30).unwrap();
        assert!(bomb.stored.len() < 64 << 10, "it is small as it comes");
        let says = |length| Packed { info: Info { length, ..bomb.info }, stored: bomb.stored.clone() };
        for length in [0, 1, 1000, MAX] {
            let bytes = encode(&header(Kind::Snapshot, 9, 9), Some(&says(length))).unwrap();
            assert!(matches!(decode(&bytes, MAX), Err(RecordError::Corrupt(_))), "{length}");
        }
        let bytes = encode(&header(Kind::Snapshot, 9, 9), Some(&bomb)).unwrap();
        assert!(matches!(decode(&bytes, MAX), Err(RecordError::TooLarge { .. })));
    }

    #[test]
    fn a_flipped_bit_is_found_or_does_no_harm() {
        let intact = decode(&sample(), MAX);
        for bit in 0..sample().len() * 8 {
            let mut bytes = sample().to_vec();
            bytes[bit / 8] ^= 1u8 << (bit % 8);
            let decoded = decode(&bytes, MAX);
            // zstd has bits that mean nothing; the checksum is of the state, which is what must be right.
            assert!(decoded.is_err() || decoded == intact, "bit {bit}");
        }
    }

    #[test]
    fn every_cut_is_found() {
        let bytes = sample();
        for length in 0..bytes.len() {
            assert!(matches!(decode(&bytes[..length], MAX), Err(RecordError::Corrupt(_))), "cut to {length}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(body in proptest::collection::vec(any::<u8>(), 0..5000), handoff: u64, bears: bool) {
            let kind = Kind::Grant(Grantee { to: Writer::default(), handoff: HandoffId(handoff) });
            let header = header(kind, 9, if bears { 9 } else { 4 });
            let packed = pack(&body, MAX).unwrap();
            let bytes = encode(&header, bears.then_some(&packed)).unwrap();
            prop_assert!(bytes.len() as u64 <= max_record(body.len() as u64));
            prop_assert_eq!(decode_header(&bytes), Ok(header.clone()));
            prop_assert_eq!(decode(&bytes, MAX), Ok((header, bears.then_some(body.into()))));
        }

        #[test]
        fn a_header_of_any_numbers_is_read_as_it_was_written_or_refused_both_ways(
            numbers: [u64; 5], version: u32, delete: bool, pod in "\\PC{0,40}", which in 0..5usize,
        ) {
            let [sequence, epoch, nonce, state_at, generation] = numbers;
            let writer = Writer { pod: PodUid(pod), generation: Generation(generation) };
            let grant = Kind::Grant(Grantee { to: writer.clone(), handoff: HandoffId(nonce) });
            let kind = [Kind::Claim, Kind::Snapshot, grant, Kind::Release, Kind::Tombstone { delete }][which].clone();
            let (sequence, state_at) = (Sequence(sequence >> 1), Sequence(state_at >> 2));
            let header = Header { sequence, epoch: Epoch(epoch), kind, writer, nonce, state_at, state_version: version };
            if let Ok(bytes) = encode(&header, None) {
                prop_assert_eq!(decode(&bytes, MAX), Ok((header.clone(), None)));
                prop_assert_eq!(describe(&bytes), Ok((header, None)));
            } else {
                let json = serde_json::to_string(&header).unwrap();
                prop_assert!(decode(&framed(FORMAT, &json, b""), MAX).is_err());
            }
        }

        #[test]
        fn a_header_that_somebody_changed_is_an_error_or_a_whole_record(
            cut: Index, new in r#"[0-9a-z"{}:,\[\]-]{0,6}"#, kind in 0..3usize, body in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let kind = [Kind::Claim, Kind::Tombstone { delete: true }, Kind::Snapshot][kind].clone();
            let whole = if kind == Kind::Snapshot { sample() } else { encode(&header(kind, 9, 8), None).unwrap() };
            let mut json = json(&whole);
            let at = cut.index(json.len());
            json.replace_range(at..(at + new.len()).min(json.len()), &new);
            if let Ok((header, state)) = decode(&framed(FORMAT, &json, &body), MAX) {
                prop_assert_eq!(header.bears_state(), state.is_some());
                prop_assert!(header.state_at <= header.sequence && header.sequence.0 <= LAST && header.epoch.0 <= LAST);
            }
        }

        #[test]
        fn noise_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode(&bytes, MAX).is_err());
            prop_assert!(decode(&framed(FORMAT, &String::from_utf8_lossy(&bytes), &bytes), MAX).is_err());
        }
    }
}
