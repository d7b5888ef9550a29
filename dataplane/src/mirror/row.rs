//! What the mirror knows of one file beside its path and content. Packed: there are millions. No I/O.
//!
//! What is known of a blob stands in every row of its content; most contents have one.

use freshet_api::FileId;
use freshet_api::manifest::{FileRef, ManifestFile};

/// One row of the mirror's table.
#[derive(Clone, Copy, Debug)]
#[repr(Rust, packed)]
pub(super) struct Row {
    file: FileId,
    size: u64,
    mtime: Seconds,
    blob_mtime: Seconds,
    digest: u32,
    flags: u8,
}

impl Row {
    /// It belongs to the state that is being made, or was.
    pub(super) const WANTED: u8 = 1;
    /// It stands in the tree.
    pub(super) const PUBLISHED: u8 = 1 << 1;
    /// It is an index, which comes after everything else.
    pub(super) const LAST: u8 = 1 << 2;
    /// Its content is on disk.
    pub(super) const HELD: u8 = 1 << 3;
    /// And is not suspected; nothing of a suspect is served until it was hashed again.
    pub(super) const TRUSTED: u8 = 1 << 4;
    /// It is the first row of its content, which stands for it where contents are counted.
    pub(super) const CHIEF: u8 = 1 << 5;
    /// It is the first of its content, and was not always the only one.
    pub(super) const TWINS: u8 = 1 << 6;

    /// As the manifest has it, neither wanted nor published nor held, and the only one of its content.
    pub(super) fn new(file: FileRef<'_>) -> Self {
        let flags = Self::CHIEF | if file.last { Self::LAST } else { 0 };
        let mtime = Seconds::of(file.mtime);
        Self { file: file.file, size: file.size, mtime, blob_mtime: mtime, digest: 0, flags }
    }

    /// Whether all of these flags are set.
    pub(super) fn is(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// Sets or clears flags.
    pub(super) fn set(&mut self, flags: u8, on: bool) {
        self.flags = if on { self.flags | flags } else { self.flags & !flags };
    }

    /// Whether its content is on disk and not suspected.
    pub(super) fn is_trusted(&self) -> bool {
        self.is(Self::HELD | Self::TRUSTED)
    }

    /// Whether customers get it by its path.
    pub(super) fn is_served(&self) -> bool {
        self.is(Self::PUBLISHED | Self::HELD | Self::TRUSTED)
    }

    /// Its number in the catalogue.
    pub(super) fn file(&self) -> FileId {
        self.file
    }

    /// Bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The manifest's modification time, seconds since the epoch.
    pub(super) fn mtime(&self) -> i64 {
        self.mtime.get()
    }

    /// The blob's own on disk, seconds since the epoch: identical contents share one.
    pub(super) fn blob_mtime(&self) -> i64 {
        self.blob_mtime.get()
    }

    /// Of the blob's stamp.
    pub(super) fn digest(&self) -> u32 {
        self.digest
    }

    /// Takes over what a manifest may change without the content: number, time, order.
    pub(super) fn renew(&mut self, file: &ManifestFile) {
        self.file = file.file;
        self.mtime = Seconds::of(file.mtime);
        self.set(Self::LAST, file.last);
    }

    /// Takes over what another row of the same content knows of the blob.
    pub(super) fn share_blob(&mut self, other: &Self) {
        (self.blob_mtime, self.digest) = (other.blob_mtime, other.digest);
        self.set(Self::HELD, other.is(Self::HELD));
        self.set(Self::TRUSTED, other.is(Self::TRUSTED));
    }

    /// Says what the blob is on disk.
    pub(super) fn set_blob(&mut self, mtime: i64, digest: u32) {
        (self.blob_mtime, self.digest) = (Seconds::of(mtime), digest);
    }
}

/// Seconds since the epoch in five bytes: 17,000 years either way, and what lies beyond is taken for the nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seconds([u8; 5]);

impl Seconds {
    fn of(seconds: i64) -> Self {
        let bytes = seconds.clamp(-(1 << 39), (1 << 39) - 1).to_le_bytes();
        Self([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4]])
    }

    fn get(self) -> i64 {
        let [a, b, c, d, e] = self.0;
        // Shifted up and down again, its sign fills the rest.
        i64::from_le_bytes([0, 0, 0, a, b, c, d, e]) >> 24
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_come_back_or_are_the_nearest() {
        for seconds in [0, 1, -1, 1_700_000_000, -5_000_000_000, (1 << 39) - 1, -(1 << 39)] {
            assert_eq!(Seconds::of(seconds).get(), seconds);
        }
        assert_eq!((Seconds::of(i64::MAX).get(), Seconds::of(i64::MIN).get()), ((1 << 39) - 1, -(1 << 39)));
    }

    #[test]
    fn a_row_is_small() {
        assert_eq!(size_of::<Row>(), 27);
    }
}
