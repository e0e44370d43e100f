//! One line when a long step begins, one every 15 seconds while it lasts, one when it ends.

use std::time::{Duration, Instant};

use anyhow::Result;

const STILL_AT_IT: Duration = Duration::from_secs(15);

/// Runs a step and tells on standard error how it goes; standard output belongs to the result table.
///
/// # Errors
/// Those of the step.
pub async fn step<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    eprintln!("local: {what} …");
    let began = Instant::now();
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(STILL_AT_IT, &mut work).await {
            Ok(Ok(done)) => {
                eprintln!("local: {what}: done in {:.1} s", began.elapsed().as_secs_f32());
                return Ok(done);
            }
            Ok(Err(error)) => {
                eprintln!("local: {what}: failed after {:.1} s", began.elapsed().as_secs_f32());
                return Err(error);
            }
            Err(_) => eprintln!("local: {what}: {:.0} s so far …", began.elapsed().as_secs_f32()),
        }
    }
}

/// Asks again every `pause` until there is an answer, at most for `bound`.
///
/// # Errors
/// An error of the question itself, or none but "not yet" within the bound.
pub async fn poll<T, F, Q>(what: &str, bound: Duration, pause: Duration, mut question: Q) -> Result<T>
where
    Q: FnMut() -> F,
    F: Future<Output = Result<Option<T>>>,
{
    let began = Instant::now();
    loop {
        if let Some(answer) = question().await? {
            return Ok(answer);
        }
        anyhow::ensure!(began.elapsed() < bound, "waited {} s in vain for {what}", bound.as_secs());
        tokio::time::sleep(pause).await;
    }
}
