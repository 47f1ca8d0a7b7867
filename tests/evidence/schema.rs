//! The schema of records is of records as they are written, and of nothing else.

use serde_json::{Value, json};

use crate::support::{audit_files, check_record};
use crate::written::{Written, lines};

#[tokio::test]
async fn records_about_the_log_itself_are_as_the_schema_says() {
    let written = Written::new().await;
    let mut seen = Vec::new();
    for file in audit_files(&written.log()) {
        for line in lines(&file) {
            let record: Value = serde_json::from_str(&line).unwrap();
            check_record(&record);
            seen.push(record["type"].as_str().unwrap().to_owned());
        }
    }
    for kind in ["process.start", "checkpoint", "segment.start", "segment.end", "chain.recovered"] {
        assert!(seen.iter().any(|seen| seen == kind), "no {kind}");
    }
}

/// It can fail: a field that is new, gone or of another kind.
#[test]
fn a_record_that_departs_from_the_schema_is_found() {
    let hash = "0".repeat(64);
    let good = json!({
        "v": 1, "seq": 1, "time": "2027-01-15T08:00:00.000000Z", "type": "process.stop",
        "prev": hash,
    });
    check_record(&good);
    let departs = |change: &dyn Fn(&mut Value)| {
        let mut record = good.clone();
        change(&mut record);
        assert!(std::panic::catch_unwind(|| check_record(&record)).is_err(), "{record}");
    };
    departs(&|record| record["new"] = json!(1));
    departs(&|record| drop(record.as_object_mut().unwrap().remove("prev")));
    departs(&|record| record["seq"] = json!("1"));
    departs(&|record| record["time"] = json!("yesterday"));
    departs(&|record| record["type"] = json!("process.pause"));
}
