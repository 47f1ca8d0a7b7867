//! What later issues own: printed as such, and not counted as passed.

use crate::ground::Report;

pub fn run(report: &mut Report) {
    for (number, name) in [
        (145, "the raft stream of a member"),
        (146, "a member's ID with another's certificate"),
        (147, "another cluster's ID"),
        (148, "peer URLs that nobody knows"),
        (149, "a promotion by one who may not"),
        (150, "an empty body for a lease of the peer port"),
        (151, "a large body for a hash of the peer port"),
        (152, "a raft message of a gigabyte"),
        (153, "a snapshot of gigabytes between peers"),
        (154, "paths of the peer port, bent"),
        (155, "another method on the peer port"),
        (156, "an upgrade on the peer port"),
        (157, "the client's API on the peer port"),
        (158, "a proposal of a peer in root's name"),
    ] {
        report.later(number, name, 8);
    }
}
