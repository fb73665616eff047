"""What a step costs on given hardware, from the compiler: memory, traffic, operations."""
