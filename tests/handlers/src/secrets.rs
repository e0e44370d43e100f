//! A secret that can be rotated, and a secret store that can be down.

use std::{cell::RefCell, rc::Rc};

use tokentill::ports::{Secret, SecretUnavailable, Secrets};

use crate::Faults;

/// One parameter. Clones are the same parameter.
#[derive(Clone)]
pub struct TestSecret {
    value: Rc<RefCell<String>>,
    /// What goes wrong with `secret`.
    pub faults: Faults,
}

impl std::fmt::Debug for TestSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TestSecret")
    }
}

impl TestSecret {
    /// A parameter with this value.
    #[must_use]
    pub fn new(value: &str) -> Self {
        Self { value: Rc::new(RefCell::new(value.to_owned())), faults: Faults::default() }
    }

    /// Stores another value.
    pub fn rotate(&self, value: &str) {
        *self.value.borrow_mut() = value.to_owned();
    }
}

impl Secrets for TestSecret {
    async fn secret(&self) -> Result<Secret, SecretUnavailable> {
        let lost = |reason| SecretUnavailable { name: "/tokentill/parameter".to_owned(), reason };
        let effect = async { Ok(Secret::new(&self.value.borrow())) };
        self.faults.around("secret", lost, effect).await
    }
}
