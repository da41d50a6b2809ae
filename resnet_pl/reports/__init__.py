"""What people read: tables and pictures made from finished run folders. Imports no torch."""
