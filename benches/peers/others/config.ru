# Puma: the work is done after the reply (rack.after_reply), in the thread that has answered.
PAGE = ("x" * (1024 * 1024)).freeze

run(lambda do |env|
  case env["PATH_INFO"]
  when "/respond", "/park"
    work = env["PATH_INFO"] == "/park" ? 3600 : 0.1
    env["rack.after_reply"] << -> { sleep work }
    [200, { "content-length" => "5" }, ["hello"]]
  when "/upload"
    [200, { "content-length" => PAGE.bytesize.to_s, "connection" => "close" }, [PAGE]]
  else
    [404, {}, []]
  end
end)
