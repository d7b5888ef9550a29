//! The client that makes the mirror what the manifest says: it fetches what is missing and nothing else.
//!
//! It decides when, from where, how many at a time and how often again; what a file on disk goes through is
//! the [mirror](crate::mirror)'s. It never serves, and never publishes a byte that was not verified.

mod backoff;
mod commit;
mod fetch;
mod origin;
mod queue;
mod run;
mod source;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use origin::retry_after;
pub use origin::{Origin, OriginEndpoint};
pub use run::{SyncOptions, run};
pub use source::{Blame, BlobSource, FetchError, ManifestSource, NoPacing, ReadPacer, Retry};
