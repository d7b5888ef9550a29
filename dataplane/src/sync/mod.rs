//! The client that makes the mirror what the manifest says: it fetches what is missing and nothing else.
//!
//! It decides when, from where, how many at a time and how often again; what a file on disk goes through is
//! the [mirror](crate::mirror)'s. It never serves, and never publishes a byte that was not verified.

mod source;

pub use source::{BlobSource, Blame, FetchError, ManifestSource, NoPacing, ReadPacer, Retry};
