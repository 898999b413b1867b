"""The paper's design space (Karras et al. 2022, Table 1) as pure maths on tensors."""
