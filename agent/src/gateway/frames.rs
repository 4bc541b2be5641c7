//! Where the frames of a WebSocket end (RFC 6455, section 5.2): only there may another one be put in. Headers are read,
//! what they head is counted and not looked at.

/// A header without its mask: two bytes, and at most eight of an extended length.
const LONGEST: usize = 10;

/// In the first byte of a Close frame, beside the bit that says that it is a whole message.
const CLOSE: u8 = 8;
const OPCODE: u8 = 0x0f;

/// In the second byte: a mask of four bytes follows the length.
const MASKED: u8 = 0x80;
const MASK_BYTES: u64 = 4;

/// Bytes of one direction of a WebSocket, followed from its first one on.
#[derive(Debug, Default)]
pub struct Frames {
    header: [u8; LONGEST],
    /// Bytes of the header that came.
    read: usize,
    /// Bytes that are still to come of the frame, once its header is here.
    left: u64,
    /// The frame under way, or the last one, is a Close.
    closes: bool,
}

impl Frames {
    /// These bytes come next. Returns how many of them there are up to the end of the last frame that ends in them.
    pub fn pass(&mut self, bytes: &[u8]) -> Option<usize> {
        let (mut at, mut end) = (0, None);
        while at < bytes.len() {
            if self.left > 0 {
                let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
                self.left -= skipped as u64;
                at += skipped;
            } else {
                self.header[self.read] = bytes[at];
                self.read += 1;
                at += 1;
                if let Some(left) = self.length() {
                    // Whoever goes on after a Close does not undo it.
                    self.closes |= self.header[0] & OPCODE == CLOSE;
                    (self.read, self.left) = (0, left);
                }
            }
            if self.is_between() {
                end = Some(at);
            }
        }
        end
    }

    /// Whether the next byte begins a frame.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.read == 0 && self.left == 0
    }

    /// Whether a Close has begun: nothing may follow it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closes
    }

    /// Bytes that follow the header, once that is whole.
    fn length(&self) -> Option<u64> {
        let header = &self.header[..self.read];
        let second = *header.get(1)?;
        let length = match second & !MASKED {
            126 => u64::from(u16::from_be_bytes(*header.get(2..)?.first_chunk()?)),
            127 => u64::from_be_bytes(*header.get(2..)?.first_chunk()?),
            short => u64::from(short),
        };
        // A length near the end of the range is no frame's: what says so has no further boundary.
        Some(length.saturating_add(if second & MASKED == 0 { 0 } else { MASK_BYTES }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    struct Frame {
        opcode: u8,
        masked: bool,
        /// Bytes in which the length is written, at least.
        width: usize,
        payload: Vec<u8>,
    }

    impl Frame {
        fn bytes(&self) -> Vec<u8> {
            let (mask, length) = (if self.masked { MASKED } else { 0 }, self.payload.len());
            let mut bytes = vec![0x80 | self.opcode];
            match self.width {
                0 if length < 126 => bytes.push(mask | u8::try_from(length).unwrap()),
                0 | 2 => {
                    bytes.push(mask | 0x7e);
                    bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
                }
                _ => {
                    bytes.push(mask | 0x7f);
                    bytes.extend((length as u64).to_be_bytes());
                }
            }
            if self.masked {
                bytes.extend([1, 2, 3, 4]);
            }
            bytes.extend(&self.payload);
            bytes
        }
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let payload = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..8),
            prop::collection::vec(any::<u8>(), 120..130),
            prop::collection::vec(any::<u8>(), 300..301)
        ];
        let parts = (
            prop::sample::select(vec![0_u8, 1, 2, 9, 10]),
            any::<bool>(),
            prop::sample::select(vec![0, 2, 8]),
            payload,
        );
        parts.prop_map(|(opcode, masked, width, payload)| Frame { opcode, masked, width, payload })
    }

    proptest! {
        #[test]
        fn boundaries_are_where_frames_end_however_they_are_cut(
            frames in prop::collection::vec(frame(), 1..6), cuts in prop::collection::vec(1_usize..40, 1..50)
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(Frame::bytes).collect();
            let ends: Vec<usize> = frames.iter().scan(0, |end, frame| { *end += frame.bytes().len(); Some(*end) }).collect();
            let (mut seen, mut at) = (Frames::default(), 0);
            for cut in cuts.into_iter().cycle() {
                let next = bytes.len().min(at + cut);
                let end = seen.pass(&bytes[at..next]);
                let last = ends.iter().rev().find(|end| (at + 1..=next).contains(end));
                prop_assert_eq!(end.map(|end| at + end), last.copied());
                at = next;
                prop_assert_eq!(seen.is_between(), ends.contains(&at), "at {} of {:?}", at, ends);
                prop_assert!(!seen.is_closed());
                if at == bytes.len() {
                    break;
                }
            }
            seen.pass(&[0x88]);
            prop_assert!(!seen.is_between() && !seen.is_closed());
            seen.pass(&[0x02, 0x03, 0xe8]);
            prop_assert!(seen.is_between() && seen.is_closed());
        }

        #[test]
        fn no_bytes_are_too_much_for_it(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20)) {
            let mut frames = Frames::default();
            for chunk in &chunks {
                frames.pass(chunk);
            }
        }
    }

    #[test]
    fn a_frame_without_an_end_has_no_boundary_after_it() {
        let mut frames = Frames::default();
        frames.pass(&[0x82, 0xff]);
        frames.pass(&[0xff; 8]);
        frames.pass(&[0; 1 << 12]);
        assert!(!frames.is_between());
    }
}
