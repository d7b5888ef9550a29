//! Files that are being served: opened beneath a root, checked, and kept; nothing here knows HTTP requests.

pub(crate) mod cache;
pub(crate) mod opened;

pub(crate) use cache::{FileCache, Lookup, Missing};
pub(crate) use opened::OpenFile;
