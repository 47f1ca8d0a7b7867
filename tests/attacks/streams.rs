use crate::ground::Report;
pub async fn run(_report: &mut Report) {}
