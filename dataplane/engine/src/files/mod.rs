//! Files that are being served: opened beneath a root, checked, and kept; nothing here knows HTTP requests.

mod buffer;
pub(crate) mod cache;
mod ghost;
pub(crate) mod opened;

pub(crate) use buffer::Buffer;
pub(crate) use cache::{FileCache, Lookup, Missing};
pub(crate) use opened::OpenFile;
