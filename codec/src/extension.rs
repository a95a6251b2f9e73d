//! The extension area between header and payload: entries that a reader skips if it does not know them.
//!
//! ```text
//!   | tag u16 | bytes u16 | data … | pad to 4 | tag … | zeros up to a multiple of 16
//! ```
//!
//! Tag 0 ends the area. So an older node passes over what a newer one adds, without a new protocol version.

use crate::error::{EncodeError, FrameError};
use crate::limits::EXTENSIONS_MAX_BYTES;

/// Tag of a trace context: 32 bytes.
pub const EXTENSION_TRACE: u16 = 1;

const TAG_END: u16 = 0;
const ENTRY_HEADER_BYTES: usize = 4;

/// One entry of the extension area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extension<'a> {
    /// What the data is; 0 is not a tag.
    pub tag: u16,
    /// The data.
    pub data: &'a [u8],
}

/// The entries of an extension area, in order. Ends after the first malformed one.
#[derive(Debug, Clone)]
pub struct Extensions<'a> {
    rest: &'a [u8],
}

impl<'a> Extensions<'a> {
    /// The entries of this area.
    #[must_use]
    pub const fn new(area: &'a [u8]) -> Self {
        Self { rest: area }
    }

    /// The data of the first entry with this tag.
    #[must_use]
    pub fn find(self, tag: u16) -> Option<&'a [u8]> {
        self.map_while(Result::ok).find(|entry| entry.tag == tag).map(|entry| entry.data)
    }
}

impl<'a> Iterator for Extensions<'a> {
    type Item = Result<Extension<'a>, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        // Areas are multiples of 4, so fewer than 4 bytes left means none.
        let ([t0, t1, b0, b1], body) = self.rest.split_first_chunk::<ENTRY_HEADER_BYTES>()?;
        let tag = u16::from_le_bytes([*t0, *t1]);
        let bytes = u16::from_le_bytes([*b0, *b1]) as usize;
        if tag == TAG_END {
            self.rest = &[];
            return None;
        }
        let (Some(data), Some(rest)) = (body.get(..bytes), body.get(bytes.next_multiple_of(4)..)) else {
            self.rest = &[];
            return Some(Err(FrameError::Extension { tag }));
        };
        self.rest = rest;
        Some(Ok(Extension { tag, data }))
    }
}

/// Writes an extension area to the start of `into` (which is the memory behind the header) and returns its
/// size, for [`Header::extension_bytes`](crate::Header).
///
/// # Errors
///
/// [`EncodeError::Full`] if `into` is too small, [`EncodeError::TooLarge`] if the area would be larger than
/// one may be.
///
/// # Panics
///
/// If an entry has tag 0.
pub fn write_extensions(into: &mut [u8], entries: &[Extension<'_>]) -> Result<u16, EncodeError> {
    let used: usize =
        entries.iter().map(|entry| ENTRY_HEADER_BYTES + entry.data.len().next_multiple_of(4)).sum();
    let area_bytes = crate::padded(used);
    if area_bytes > EXTENSIONS_MAX_BYTES {
        return Err(EncodeError::TooLarge);
    }
    let area = into.get_mut(..area_bytes).ok_or(EncodeError::Full)?;
    area.fill(0);
    let mut at = 0;
    for entry in entries {
        assert!(entry.tag != TAG_END, "tag 0 ends the extension area and cannot be written");
        area[at..at + 2].copy_from_slice(&entry.tag.to_le_bytes());
        // No cut: the whole area is at most 1024 bytes.
        area[at + 2..at + 4].copy_from_slice(&(entry.data.len() as u16).to_le_bytes());
        at += ENTRY_HEADER_BYTES;
        area[at..at + entry.data.len()].copy_from_slice(entry.data);
        at += entry.data.len().next_multiple_of(4);
    }
    Ok(area_bytes as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_and_unknown_ones_are_passed_over() {
        let entries =
            [Extension { tag: 900, data: b"later" }, Extension { tag: EXTENSION_TRACE, data: &[7; 32] }];
        let mut area = [0xff; 128];
        let bytes = write_extensions(&mut area, &entries).unwrap() as usize;
        assert_eq!(bytes, 48);
        let read: Vec<_> = Extensions::new(&area[..bytes]).collect::<Result<_, _>>().unwrap();
        assert_eq!(read, entries);
        assert_eq!(Extensions::new(&area[..bytes]).find(EXTENSION_TRACE), Some(&[7; 32][..]));
        assert_eq!(Extensions::new(&area[..bytes]).find(2), None);
    }

    #[test]
    fn an_entry_that_overruns_the_area_is_an_error_and_ends_it() {
        let mut area = [0; 16];
        area[0] = 5;
        area[2] = 13;
        let mut entries = Extensions::new(&area);
        assert_eq!(entries.next(), Some(Err(FrameError::Extension { tag: 5 })));
        assert_eq!(entries.next(), None);
    }

    #[test]
    fn an_area_over_the_limit_is_refused() {
        let data = [0; EXTENSIONS_MAX_BYTES];
        let mut area = [0; 2 * EXTENSIONS_MAX_BYTES];
        assert_eq!(
            write_extensions(&mut area, &[Extension { tag: 1, data: &data }]),
            Err(EncodeError::TooLarge)
        );
        assert_eq!(
            write_extensions(&mut area[..8], &[Extension { tag: 1, data: &[0; 32] }]),
            Err(EncodeError::Full)
        );
    }
}
