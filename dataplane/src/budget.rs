//! What the owner gives, from his word to the last chunk: counters and clock in, rates and admissions out.
//!
//! Ten times a second the [`Steward`] turns what passed the interfaces into what may still go out; the pacers keep
//! that rate, the admission sends back whom the rest no longer suffices for, the ledger outlives the process. The
//! decisions themselves are `freshet_policy::budget`'s.

pub mod admission;
pub mod headers;
pub mod month;
pub mod pacer;
pub mod patrol;
pub mod steward;

pub use admission::Admission;
pub use headers::WireShare;
pub use month::{Month, MonthError};
pub use pacer::{DonationPacer, Rates};
pub use patrol::{Outlook, Patrol, PatrolParts};
pub use steward::{Stand, Steward};
