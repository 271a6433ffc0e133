package front

// SetTicketKeys makes these the keys of session tickets, from the next handshake on: the first seals, all are read. Doors that bring
// a TLSConfig have keys of their own. Without any, tickets resume at this node alone, until it ends.
func (f *Front) SetTicketKeys(keys [][32]byte) { f.speech.Store(f.newSpeech(keys)) }
