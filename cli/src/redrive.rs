//! Dead letters, moved back to where they came from.

use aws_sdk_sqs::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    types::QueueAttributeName,
};

/// A queue with dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// What AI services report.
    Usage,
    /// What the webhook hears.
    AccountChanges,
}

impl Queue {
    /// The queue's name, as the template makes it.
    #[must_use]
    pub fn name(self, stack: &str) -> String {
        match self {
            Self::Usage => format!("{stack}-usage"),
            Self::AccountChanges => format!("{stack}-account-changes.fifo"),
        }
    }

    /// The name of its dead-letter queue, as the template makes it.
    #[must_use]
    pub fn dead_name(self, stack: &str) -> String {
        match self {
            Self::Usage => format!("{stack}-usage-dead"),
            Self::AccountChanges => format!("{stack}-account-changes-dead.fifo"),
        }
    }
}

/// What became of the dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeadLetters {
    /// There are none.
    None,
    /// SQS moves them, in its own time.
    Moving {
        /// SQS's name of the task.
        task: String,
        /// About how many there are.
        about: u64,
    },
}

/// SQS did not do it; the text says what and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct NotRedriven {
    what: String,
    reason: String,
}

/// The URL of a queue of this name.
///
/// # Errors
/// [`NotRedriven`] if there is none, or SQS cannot be asked.
pub async fn queue_url(sqs: &Client, name: &str) -> Result<String, NotRedriven> {
    let what = || format!("looking for the queue {name}; are --stack, Region and credentials those of the stack?");
    let found = sqs.get_queue_url().queue_name(name).send().await.map_err(|error| failed(what(), &error))?;
    found.queue_url.ok_or_else(|| NotRedriven { what: what(), reason: "SQS names no URL".to_owned() })
}

/// Has SQS move a queue's dead letters back. Safe on any day: usage is recognised by its request, and a hint only says where to
/// look.
///
/// # Errors
/// [`NotRedriven`]; nothing is lost, and the command can be given again.
pub async fn redrive(sqs: &Client, stack: &str, queue: Queue) -> Result<DeadLetters, NotRedriven> {
    let name = queue.dead_name(stack);
    let url = queue_url(sqs, &name).await?;
    let request = sqs
        .get_queue_attributes()
        .queue_url(url)
        .attribute_names(QueueAttributeName::QueueArn)
        .attribute_names(QueueAttributeName::ApproximateNumberOfMessages);
    let what = format!("looking at the queue {name}");
    let found = request.send().await.map_err(|error| failed(what.clone(), &error))?;
    let attribute = |name| found.attributes.as_ref().and_then(|attributes| attributes.get(&name)).cloned();
    let Some(arn) = attribute(QueueAttributeName::QueueArn) else {
        return Err(NotRedriven { what, reason: "SQS names no ARN".to_owned() });
    };
    let about = attribute(QueueAttributeName::ApproximateNumberOfMessages).and_then(|text| text.parse().ok()).unwrap_or(0);
    if about == 0 {
        return Ok(DeadLetters::None);
    }
    let started = sqs.start_message_move_task().source_arn(arn).send().await;
    let started = started
        .map_err(|error| failed(format!("moving the messages of {name} back, which SQS does one task at a time"), &error))?;
    Ok(DeadLetters::Moving { task: started.task_handle.unwrap_or_default(), about })
}

fn failed<E: ProvideErrorMetadata, R>(what: String, error: &SdkError<E, R>) -> NotRedriven {
    let reason = match (error.code(), error) {
        (Some(code), _) => format!("{code}: {}", error.message().unwrap_or_default()),
        (None, SdkError::TimeoutError(_)) => "timed out".to_owned(),
        (None, SdkError::ConstructionFailure(_)) => "the request cannot be made; is a Region set?".to_owned(),
        (None, SdkError::DispatchFailure(_)) => "SQS is not reachable, or there are no credentials".to_owned(),
        (None, _) => "no usable answer".to_owned(),
    };
    NotRedriven { what, reason }
}
