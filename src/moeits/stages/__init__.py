"""The verbs: one module, one public function and one command each."""
